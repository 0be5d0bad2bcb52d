// Rows and their own classes at length 1: how far apart they are, and the gradients of that.
#pragma once

#include "parallel.h"
#include "simd.h"

namespace DML_ISA {

class OwnPairs {
 public:
  OwnPairs(const dml_own& p) : p_(p) {}

  // pairs (4, n): inverse lengths of rows and of classes, lengths of difference and sum at length 1.
  void measure(float* pairs) const {
    const int64_t n = p_.n;
    parallel_for(p_.threads, n, [&](int64_t i) {
      const float* x = p_.rows + i * p_.d;
      const float* w = own_class(i);
      const float of_row = inverse_length(x), of_class = inverse_length(w);
      vf apart = {}, joined = {};
      each_part([&](int64_t k, int64_t width) {
        const vf a = load_first(x + k, width) * of_row, b = load_first(w + k, width) * of_class;
        apart += (a - b) * (a - b);
        joined += (a + b) * (a + b);
      });
      pairs[i] = of_row;
      pairs[n + i] = of_class;
      pairs[2 * n + i] = length_of(apart);
      pairs[3 * n + i] = length_of(joined);
    });
  }

  // Adds to d_rows, and fills d_classes, the gradients from that of the angles (n,); either may be NULL.
  void gradient(const float* pairs, const float* d_angle, float* d_rows, float* d_classes) const {
    const int64_t n = p_.n;
    parallel_for(p_.threads, n, [&](int64_t i) {
      const Side row{p_.rows + i * p_.d, pairs[i]}, own{own_class(i), pairs[n + i]};
      const float apart = pairs[2 * n + i] * pairs[2 * n + i], joined = pairs[3 * n + i] * pairs[3 * n + i];
      const float both = apart + joined;  // 4, less where one is 0
      const float versine = both == 0 ? 0.0f : 2 * apart / both;
      if (d_rows) gradient(row, own, versine, -d_angle[i], true, d_rows + i * p_.d);
      if (d_classes) gradient(own, row, versine, -d_angle[i], false, d_classes + i * p_.d);
    });
  }

 private:
  struct Side {
    const float* x;
    float inverse;
  };

  static constexpr float tiny = std::numeric_limits<float>::min();
  static constexpr float parallel = 1e-6f;  // settings.py

  const float* own_class(int64_t i) const { return p_.weight + p_.labels[i] * p_.d; }

  template <class F>
  void each_part(F&& f) const {
    for (int64_t k = 0; k < p_.d; k += VL) f(k, std::min<int64_t>(VL, p_.d - k));
  }

  static float length_of(vf squares) {
    const float sum = hsum(squares);
    return sum == 0 ? tiny : std::sqrt(sum);
  }

  // 0 for a row of zeros.
  float inverse_length(const float* x) const {
    vf largest = splat(tiny), sum = {};
    each_part([&](int64_t k, int64_t width) {
      const vf value = load_first(x + k, width);
      largest = max(largest, max(value, -value));
    });
    const float top = hmax(largest);
    each_part([&](int64_t k, int64_t width) {
      const vf value = load_first(x + k, width) / top;
      sum += value * value;
    });
    const float squared = hsum(sum);
    return squared == 0 ? 0.0f : 1 / std::sqrt(squared) / top;
  }

  // Adds or writes the gradient of a from `g`, that of minus its angle with b: along the direction from a to
  // b on the sphere, b - cos(angle) a, made of small differences where the angle is small. versine: 1 - cos.
  void gradient(const Side& a, const Side& b, float versine, float g, bool add, float* out) const {
    const auto towards = [&](int64_t k, int64_t width) {
      const vf x = load_first(a.x + k, width) * a.inverse, y = load_first(b.x + k, width) * b.inverse;
      return y - x + x * versine;
    };
    vf squares = {};
    each_part([&](int64_t k, int64_t width) {
      const vf value = towards(k, width);
      squares += value * value;
    });
    const float sine = std::sqrt(hsum(squares));
    const float by = sine < parallel ? 0.0f : g * a.inverse / sine;
    each_part([&](int64_t k, int64_t width) {
      const vf value = towards(k, width) * by;
      store_first(out + k, add ? load_first(out + k, width) + value : value, width);
    });
  }

  const dml_own p_;
};

}  // namespace DML_ISA
