// Vectors of VL floats as GCC/Clang vector extensions, and the few functions on them that the kernels need.
// The file is compiled once per instruction set; DML_ISA names the namespace.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

extern std::atomic<bool> poison_buffers;  // set by tests: fresh memory is filled with NaN

namespace DML_ISA {

#if defined(__AVX512F__)
constexpr int VL = 16, MR = 8,
              NV = 2;  // MR x NV accumulators, NV operands and a broadcast: 19 of 32 registers
#elif defined(__AVX2__)
constexpr int VL = 8, MR = 4, NV = 3;  // 16 of 16 registers
#else
constexpr int VL = 4, MR = 4, NV = 2;
#endif
constexpr int NR = NV * VL;  // columns of a strip
static_assert(VL % MR == 0, "a group of MR rows lies inside one packed panel");

typedef float vf __attribute__((vector_size(VL * sizeof(float))));
typedef double vd __attribute__((vector_size(VL * sizeof(double))));
typedef int32_t vi __attribute__((vector_size(VL * sizeof(int32_t))));

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline vi load(const int32_t* p) {
  vi v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
// The first `count` <= VL floats at p, then zeros.
inline vf load_first(const float* p, int64_t count) {
  if (count == VL) return load(p);
  vf v = {};
  std::memcpy(&v, p, count * sizeof(float));
  return v;
}
inline void store(float* p, vf v) {
  std::memcpy(p, &v, sizeof v);
}
inline void store_first(float* p, vf v, int64_t count) {
  if (count == VL) return store(p, v);
  std::memcpy(p, &v, count * sizeof(float));
}
// Starts to bring `count` floats into the cache; any address will do. GCC drops calls of what seems to do
// nothing, so that it must be inlined.
inline __attribute__((always_inline)) void prefetch(const float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i);
}

inline vf splat(float x) {
  vf v;
  for (int i = 0; i < VL; i++) v[i] = x;
  return v;
}
inline vi splat(int32_t x) {
  vi v;
  for (int i = 0; i < VL; i++) v[i] = x;
  return v;
}
inline vi lane_index() {
  vi v;
  for (int i = 0; i < VL; i++) v[i] = i;
  return v;
}

inline vf select(vi mask, vf a, vf b) {
  return mask ? a : b;
}
inline vf keep(vi mask, vf a) {
  return (vf)(mask & (vi)a);
}  // 0 where the mask is off

// Transposes a square of vectors: in step s every 2s x 2s square swaps its off-diagonal s x s squares.
inline void transpose(vf (&m)[VL]) {
#if defined(__clang__)
  vf t[VL];
  for (int i = 0; i < VL; i++)
    for (int j = 0; j < VL; j++) t[j][i] = m[i][j];
  std::memcpy(m, t, sizeof t);
#else
#pragma GCC unroll 8
  for (int s = 1; s < VL; s *= 2) {
    const vi lane = lane_index(), odd = (lane & s) != 0;
    const vi upper = odd ? lane + VL - s : lane, lower = odd ? lane + VL : lane + s;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
      if (i & s) continue;
      const vf a = m[i], b = m[i + s];
      m[i] = __builtin_shuffle(a, b, upper);
      m[i + s] = __builtin_shuffle(a, b, lower);
    }
  }
#endif
}

inline bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int32_t bits = 0;
  for (int i = 0; i < VL; i++) bits |= mask[i];
  return bits != 0;
#endif
}

inline vf max(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline vf sqrt(vf a) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)a);
#else
  vf r;
  for (int i = 0; i < VL; i++) r[i] = std::sqrt(a[i]);
  return r;
#endif
}

// 1 / a and sqrt(a) for a > 0, within 2 ulp where that is quicker: AVX-512 has starting values of 14 bits,
// and one Newton step takes a quarter of the time of a division or a root.
inline vf reciprocal(vf a) {
#if defined(__AVX512F__)
  const vf r = (vf)_mm512_rcp14_ps((__m512)a);
  return r * (2.0f - a * r);
#else
  return 1.0f / a;
#endif
}
inline vf quick_sqrt(vf a) {
#if defined(__AVX512F__)
  const vf r = (vf)_mm512_rsqrt14_ps((__m512)a);
  const vf root = a * r;
  return keep(a > 0.0f, root + (a - root * root) * (r * 0.5f));
#else
  return sqrt(a);
#endif
}

inline float hsum(vf a) {
  float s[VL];
  store(s, a);
  for (int half = VL / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) s[i] += s[i + half];
  return s[0];
}
inline float hmax(vf a) {
  float s[VL];
  store(s, a);
  for (int i = 1; i < VL; i++) s[0] = s[i] > s[0] ? s[i] : s[0];
  return s[0];
}

// exp(x) to about 1 ulp for x in [-87, 88]; smaller x, -inf too, give exp(-87) = 1.6e-38.
inline vf exp(vf x) {
  constexpr float log2e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  x = max(x, splat(-87.0f));
  constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vf shifted = x * log2e + shift;
  vf n = shifted - shift;
  vf r = x - n * ln2_high;
  r = r - n * ln2_low;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  vi exponent = ((vi)shifted - (vi)splat(shift)) << 23;
  return (vf)((vi)p + exponent);
}

// log(1 + u) for u in [0, 1], exact in the limit u -> 0: 2 atanh(u / (2 + u)).
inline vf log1p(vf u) {
  vf s = u / (u + 2.0f), q = s * s;
  vf p = splat(2.0f / 13);
  p = p * q + 2.0f / 11;
  p = p * q + 2.0f / 9;
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return p * s;
}

}  // namespace DML_ISA
