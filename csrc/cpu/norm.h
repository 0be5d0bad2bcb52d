// The length of a row, and rows at length 1.
#pragma once

#include <algorithm>
#include <limits>

#include "parallel.h"
#include "simd.h"

namespace DML_ISA {

// Calls f(k, width) for each vector of d components, the last of which may be narrower.
template <class F>
inline void each_part(int64_t d, F&& f) {
  for (int64_t k = 0; k < d; k += VL) f(k, std::min<int64_t>(VL, d - k));
}

// A power of two, and the length of a row times that, from 1 on: squares neither overflow nor vanish. The
// power is 0 of a row of zeros, or one shorter than any normal float; the length NaN of one not finite.
struct Norm {
  float power, length;
};

inline Norm norm_of(const float* x, int64_t d) {
  constexpr float tiny = std::numeric_limits<float>::min();
  vf largest = splat(tiny), sum = {};
  each_part(d, [&](int64_t k, int64_t width) {
    const vf value = load_first(x + k, width);
    largest = max(largest, max(value, -value));
  });
  int32_t bits;
  const float top = std::min(hmax(largest), 1 / tiny);
  std::memcpy(&bits, &top, sizeof bits);
  bits &= 0x7f800000;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  power = 1 / power;
  each_part(d, [&](int64_t k, int64_t width) {
    const vf value = load_first(x + k, width) * power;
    sum += value * value;
  });
  const float squared = hsum(sum);
  if (squared < 1) return {0, 1};
  const bool finite = squared <= std::numeric_limits<float>::max();
  return {power, finite ? std::sqrt(squared) : std::numeric_limits<float>::quiet_NaN()};
}

// Threads that rows are worth: starting one takes as long as some thousand components.
inline int threads_for(int threads, int64_t components) {
  return int(std::min<int64_t>(threads, 1 + components / 8192));
}

// out (n, d): rows at length 1.
inline void normalize_rows(const float* rows, int64_t n, int64_t d, int threads, float* out) {
  parallel_for(threads_for(threads, n * d), n, [&](int64_t i) {
    const Norm norm = norm_of(rows + i * d, d);
    each_part(d, [&](int64_t k, int64_t width) {
      store_first(out + i * d + k, load_first(rows + i * d + k, width) * norm.power / norm.length, width);
    });
  });
}

// out (n, d): the gradient of rows from that of the rows at length 1.
inline void normalize_gradient(const float* grad, const float* rows, int64_t n, int64_t d, int threads,
                               float* out) {
  parallel_for(threads_for(threads, n * d), n, [&](int64_t i) {
    const float *x = rows + i * d, *g = grad + i * d;
    const Norm norm = norm_of(x, d);
    const float inverse = norm.power / norm.length;
    vf sum = {};
    each_part(d, [&](int64_t k, int64_t width) {
      sum += load_first(g + k, width) * (load_first(x + k, width) * norm.power / norm.length);
    });
    const float along = hsum(sum);
    each_part(d, [&](int64_t k, int64_t width) {
      const vf unit = load_first(x + k, width) * norm.power / norm.length;
      store_first(out + i * d + k, (load_first(g + k, width) - along * unit) * inverse, width);
    });
  });
}

}  // namespace DML_ISA
