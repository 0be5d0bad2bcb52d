// What warps do with matrices, as it is documented: which thread has which elements.
#pragma once

#include <array>

#include "emulation.h"

namespace emulation {

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// ldmatrix.x4: thread 8 k + r brings where row r of the k-th matrix of 8 x 8 halves is, 16 bytes long.
inline void load_matrices(uint32_t (&to)[4], const char* from, bool transposed) {
  struct Load {
    uint32_t (&to)[4];
    const char* from;
  } mine{to, from};
  together(mine, [&](const auto& of) {
    for (int lane = 0; lane < WARP; lane++)
      for (int k = 0; k < 4; k++)
        for (int half = 0; half < 2; half++) {
          const int major = lane / 4, minor = lane % 4 * 2 + half;
          const int row = transposed ? minor : major, column = transposed ? major : minor;
          char* const place = reinterpret_cast<char*>(&of(lane).to[k]) + half * 2;
          std::memcpy(place, of(8 * k + row).from + column * 2, 2);
        }
  });
}

// mma.m16n8: c (16, 8) plus a (16, K) times b (K, 8). Of K there are PACKED in a register.
template <int PACKED, auto TO_FLOAT>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr int K = 8 * PACKED, BITS = 32 / PACKED;
  struct Product {
    float (&c)[4];
    uint32_t a[4], b[2];
  } mine{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto element = [&](uint32_t packed, int k) { return TO_FLOAT(packed >> k % PACKED * BITS); };
  together(mine, [&](const auto& of) {
    float rows[16][K], columns[K][8];
    for (int k = 0; k < K; k++) {
      const int quad = k / PACKED % 4, half = k / (4 * PACKED);
      for (int i = 0; i < 16; i++) rows[i][k] = element(of(i % 8 * 4 + quad).a[half * 2 + i / 8], k);
      for (int j = 0; j < 8; j++) columns[k][j] = element(of(j * 4 + quad).b[half], k);
    }
    for (int i = 0; i < 16; i++) {
      float sums[8] = {};
      for (int k = 0; k < K; k++)
        for (int j = 0; j < 8; j++) sums[j] += rows[i][k] * columns[k][j];
      for (int j = 0; j < 8; j++) of(i % 8 * 4 + j / 2).c[i / 8 * 2 + j % 2] += sums[j];
    }
  });
}

inline float bfloat16_to_float(uint32_t bits) {
  return float_of(bits << 16);
}

// What a product of tf32 takes of a float.
inline float tf32_to_float(uint32_t bits) {
  return float_of(bits & ~0x1fffu);
}

// wgmma.m64n64k16: sums (16 of 64 rows, 64) plus a (16, 16) times a matrix in shared memory, whose rows are
// 128 bytes of bfloat16, swizzled. `along`: of that matrix, k counts rows, else components.
inline void multiply_add_shared(float (&sums)[8][4], std::array<uint32_t, 4> a, const char* start,
                                int leading, int stride, bool along) {
  struct Product {
    float (&sums)[8][4];
    std::array<uint32_t, 4> a;
  } mine{sums, a};
  together(mine, [&](const auto& of) {
    float rows[16][16], columns[16][64];
    for (int k = 0; k < 16; k++) {
      for (int i = 0; i < 16; i++) {
        const uint32_t both = of(i % 8 * 4 + k % 8 / 2).a[k / 8 * 2 + i / 8];
        rows[i][k] = bfloat16_to_float(k % 2 ? both >> 16 : both & 0xffff);
      }
      for (int n = 0; n < 64; n++) {
        const int row = along ? k : n, component = along ? n : k;
        const uintptr_t linear = uintptr_t(start) + uintptr_t(component / 64 * leading + row / 8 * stride +
                                                              row % 8 * 128 + component % 64 * 2);
        uint16_t bits;
        std::memcpy(&bits, reinterpret_cast<const char*>(linear ^ (linear >> 7 & 7) << 4), sizeof bits);
        columns[k][n] = bfloat16_to_float(bits);
      }
    }
    for (int i = 0; i < 16; i++) {
      float products[64] = {};
      for (int k = 0; k < 16; k++)
        for (int n = 0; n < 64; n++) products[n] += rows[i][k] * columns[k][n];
      for (int n = 0; n < 64; n++) of(i % 8 * 4 + n % 8 / 2).sums[n / 8][i / 8 * 2 + n % 2] += products[n];
    }
  });
}

}  // namespace emulation
