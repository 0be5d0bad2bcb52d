// Tiles of prepared rows, and their products on tensor cores.
//
// Prepared rows lie in tiles of TILE rows by chunks of 128 bytes, one chunk of a tile after the other. A row
// has its eight units of 16 bytes in an order of its own, unit u at u ^ (row % 8): whichever eight rows the
// tensor cores read a unit of, the units are in different banks. A warp has 16 rows against the TILE columns
// of a tile; scores[f][e] of a thread is row row_of(e) and column column_of(f, e) of these.
#pragma once

#include "device.h"

namespace dml {

constexpr int TILE = 64, UNIT = 16, CHUNK = 128, TILE_CHUNK = TILE * CHUNK;  // rows; bytes
constexpr int UNITS = CHUNK / UNIT;                                          // of a chunk
constexpr int WARP_ROWS = 16, BAND = WARPS * WARP_ROWS;
constexpr int FRAGMENTS = TILE / 8;
using Scores = float[FRAGMENTS][4];

template <class T>
constexpr int components_of_chunk = CHUNK / int(sizeof(T));

__device__ __forceinline__ int lane_of() {
  return int(threadIdx.x) % WARP;
}
__device__ __forceinline__ int warp_of() {
  return int(threadIdx.x) / WARP;
}
__device__ __forceinline__ int row_of(int e) {
  return lane_of() / 4 + e / 2 * 8;
}
__device__ __forceinline__ int column_of(int f, int e) {
  return f * 8 + lane_of() % 4 * 2 + e % 2;
}

// Calls f(f, e) for each score of a thread.
template <class F>
__device__ __forceinline__ void each_score(const F& f) {
#pragma unroll
  for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) f(n, e);
}

// Where a unit of a row of a tile is in a chunk.
__device__ __forceinline__ int place_of(int row, int unit) {
  return row * CHUNK + ((unit ^ (row & 7)) * UNIT);
}

template <class T>
__device__ __forceinline__ T element(const char* chunk, int row, int k) {
  constexpr int IN_UNIT = UNIT / int(sizeof(T));
  return *reinterpret_cast<const T*>(chunk + place_of(row, k / IN_UNIT) + k % IN_UNIT * int(sizeof(T)));
}

#ifdef DML_EMULATED
inline void copy_unit(char* shared, const char* global) {
  emulation::me().copies.push([=] { std::memcpy(shared, global, UNIT); });
}
inline void end_copies() {
  emulation::me().copies.end_group();
}
template <int LATER>
void await_copies() {
  emulation::me().copies.await(LATER);
}
inline void load_matrices(uint32_t (&to)[4], const char* from) {
  emulation::load_matrices(to, from, false);
}
inline void load_transposed(uint32_t (&to)[4], const char* from) {
  emulation::load_matrices(to, from, true);
}
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bfloat16) {
  emulation::multiply_add<2, emulation::bfloat16_to_float>(c, a, b0, b1);
}
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float16) {
  emulation::multiply_add<2, emulation::half_to_float>(c, a, b0, b1);
}
inline void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::multiply_add<1, emulation::tf32_to_float>(c, a, b0, b1);
}
#else
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return uint32_t(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void copy_unit(char* shared, const char* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global));
}
__device__ __forceinline__ void end_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LATER>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const char* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(from)));
}

__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const char* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(from)));
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             float16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// What a float is beyond its tf32.
__device__ __forceinline__ void split(uint32_t& high, uint32_t& low) {
  const float value = bits_to_float(high), rounded = to_tf32(value);
  high = float_to_bits(rounded);
  low = float_to_bits(to_tf32(value - rounded));
}

// Adds the product of floats, as accurate as float32's own: all but low times low.
__device__ __forceinline__ void multiply_add_exact(float (&c)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&a_low)[4], uint32_t b0, uint32_t b1) {
  uint32_t b0_low, b1_low;
  split(b0, b0_low);
  split(b1, b1_low);
  multiply_add_tf32(c, a_low, b0, b1);
  multiply_add_tf32(c, a, b0_low, b1_low);
  multiply_add_tf32(c, a, b0, b1);
}

// The weights of eight columns as the first operand of a tf32 product, whose k-th and (k + 4)-th columns are
// here the columns 2k and 2k + 1.
__device__ __forceinline__ void weights_of_eight(uint32_t (&a)[4], const float (&weights)[4]) {
#pragma unroll
  for (int k = 0; k < 4; k++) a[k] = float_to_bits(weights[k % 2 * 2 + k / 2]);
}

// Two floats that are bfloat16, the first one in the lower half.
__device__ __forceinline__ uint32_t packed(float low, float high) {
  return float_to_bits(low) >> 16 | (float_to_bits(high) & 0xffff0000u);
}

// Adds the product of the weights of sixteen columns, rounded, with eight components of these: b0 has the
// columns 2k and 2k + 1 of the first eight, b1 of the others.
__device__ __forceinline__ void multiply_add_weighted(float (&c)[4], const float (*weights)[4], uint32_t b0,
                                                      uint32_t b1, bfloat16) {
  uint32_t a[4];
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const float* const w = weights[k / 2] + k % 2 * 2;
    a[k] = packed(w[0], w[1]);
  }
  multiply_add(c, a, b0, b1, bfloat16());
}

__device__ __forceinline__ void multiply_add_weighted(float (&c)[4], const float (*weights)[4], uint32_t b0,
                                                      uint32_t b1, float16) {
#pragma unroll
  for (int k = 0; k < 2; k++) {
    uint32_t a[4];
    weights_of_eight(a, weights[k]);
    const uint32_t b = k ? b1 : b0;
    multiply_add_tf32(c, a, float_to_bits(to_float(float16{uint16_t(b)})),
                      float_to_bits(to_float(float16{uint16_t(b >> 16)})));
  }
}

// Adds to scores the products of a chunk of the warp's rows, which begin at `rows`, with that of a tile of
// columns. fast: take float32 as tf32.
template <class T>
__device__ __forceinline__ void add_scores(Scores& scores, const char* rows, const char* columns, bool fast) {
  constexpr int STEPS = CHUNK / (2 * UNIT);
  const int lane = lane_of();
  uint32_t a[STEPS][4], a_low[STEPS][4];
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    load_matrices(a[step], rows + place_of(lane % 16, step * 2 + lane / 16));
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int k = 0; k < 4; k++) split(a[step][k], a_low[step][k]);
    }
  }
#pragma unroll
  for (int pair = 0; pair < FRAGMENTS / 2; pair++) {
    float sums[2][4] =
        {};  // a tensor core truncates what it adds to: only the sums of a chunk are left to it
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      uint32_t b[4];
      load_matrices(b, columns + place_of(pair * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t b0 = b[half * 2], b1 = b[half * 2 + 1];
        if constexpr (sizeof(T) == 2)
          multiply_add(sums[half], a[step], b0, b1, T());
        else if (fast)
          multiply_add_tf32(sums[half], a[step], b0, b1);
        else
          multiply_add_exact(sums[half], a[step], a_low[step], b0, b1);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int e = 0; e < 4; e++) scores[pair * 2 + half][e] += sums[half][e];
  }
}

// Rounds weights as they enter a product. float16 rows meet weights of tf32, which have the range of float32.
template <class T>
__device__ __forceinline__ void round_weights(Scores& weights, bool fast) {
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      float &first = weights[f][e], &second = weights[f][e + 1];
      if constexpr (std::is_same_v<T, bfloat16>) {
        const uint32_t both = to_bfloat16s(first, second);
        first = bits_to_float(both << 16), second = bits_to_float(both & 0xffff0000u);
      } else if (std::is_same_v<T, float16> || fast) {
        first = to_tf32(first), second = to_tf32(second);
      }
    }
}

// Adds to sums (16 rows, components of some chunks) the product of weights, rounded, with these chunks of a
// tile of columns.
template <class T, int N>
__device__ __forceinline__ void add_weighted(float (&sums)[N][4], const Scores& weights, const char* columns,
                                             bool fast) {
  constexpr int IN_CHUNK = components_of_chunk<T> / 8;
  const int lane = lane_of();
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int step = 0; step < TILE / 16; step++) {
      const float (*const w)[4] = weights + step * 2;
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        uint32_t b[4];
        load_transposed(b, columns + n / IN_CHUNK * TILE_CHUNK +
                               place_of(step * 16 + lane / 8 % 2 * 8 + lane % 8, n % IN_CHUNK + lane / 16));
        multiply_add_weighted(sums[n], w, b[0], b[1], T());
        multiply_add_weighted(sums[n + 1], w, b[2], b[3], T());
      }
    }
  } else {
    constexpr int AT_ONCE = FRAGMENTS / 4;  // as many as registers hold
#pragma unroll
    for (int first = 0; first < FRAGMENTS; first += AT_ONCE) {
      uint32_t a[AT_ONCE][4], a_low[AT_ONCE][4];
#pragma unroll
      for (int f = 0; f < AT_ONCE; f++) {
        weights_of_eight(a[f], weights[first + f]);
#pragma unroll
        for (int k = 0; k < 4; k++) split(a[f][k], a_low[f][k]);
      }
#pragma unroll
      for (int n = 0; n < N; n++) {
        const char* const chunk = columns + n / IN_CHUNK * TILE_CHUNK;
        float sum[4] = {};
#pragma unroll
        for (int f = 0; f < AT_ONCE; f++) {
          const int j = (first + f) * 8 + lane % 4 * 2;
          const uint32_t b0 = float_to_bits(element<float>(chunk, j, n % IN_CHUNK * 8 + lane / 4));
          const uint32_t b1 = float_to_bits(element<float>(chunk, j + 1, n % IN_CHUNK * 8 + lane / 4));
          if (fast)
            multiply_add_tf32(sum, a[f], b0, b1);
          else
            multiply_add_exact(sum, a[f], a_low[f], b0, b1);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) sums[n][e] += sum[e];
      }
    }
  }
}

}  // namespace dml
