// Rows and their own classes: the logits of these, the losses of rows, and their gradients by the angles.
#pragma once

#include "norm.h"
#include "parallel.h"

namespace DML_ISA {

class OwnPairs {
 public:
  OwnPairs(const dml_own& p) : p_(p), share_(p.smoothing / float(p.c)) {}

  // known (n,): the labels, -1 where a row does not count. Returns the first row whose label is no class, or
  // -1.
  int64_t find(int64_t* known) const {
    for (int64_t i = 0; i < p_.n; i++) {
      const int64_t label = p_.labels[i];
      const bool counts = label != p_.ignore_index;
      if (counts && (label < 0 || label >= p_.c)) return i;
      known[i] = counts ? label : -1;
    }
    return -1;
  }

  // pairs (5, n), as dmlfast.h has it.
  void measure(const int64_t* known, float* pairs) const {
    const int64_t n = p_.n;
    parallel_for(p_.threads, n, [&](int64_t i) {
      if (known[i] < 0) {
        for (int part = 0; part < 5; part++) pairs[part * n + i] = 0;
        return;
      }
      const float *x = p_.rows + i * p_.d, *w = own_class(i, known[i]);
      const float of_row = inverse_length(x), of_class = inverse_length(w);
      vf apart = {}, joined = {};
      each_part(p_.d, [&](int64_t k, int64_t width) {
        const vf a = load_first(x + k, width) * of_row, b = load_first(w + k, width) * of_class;
        apart += (a - b) * (a - b);
        joined += (a + b) * (a + b);
      });
      pairs[i] = of_row;
      pairs[n + i] = of_class;
      pairs[2 * n + i] = hsum(apart);
      pairs[3 * n + i] = hsum(joined);
      const Angle angle = angle_of(pairs[2 * n + i], pairs[3 * n + i]);
      pairs[4 * n + i] = p_.scale * (with_margin(angle).cosine - p_.cosine_margin);
    });
  }

  // Losses (n,) and their gradients by the angles; d_rows and d_classes may be NULL.
  void losses(const float* pairs, const float* logsumexp, const float* row_weight, const float* others,
              float* losses, float* d_rows, float* d_classes) const {
    const int64_t n = p_.n;
    parallel_for(p_.threads, n, [&](int64_t i) {
      float* d_class = d_classes ? d_classes + i * p_.d : nullptr;
      if (p_.labels[i] < 0) {
        losses[i] = std::isnan(logsumexp[i]) ? logsumexp[i] : 0;  // as where a class is not finite
        if (d_class) std::fill_n(d_class, p_.d, 0.0f);
        return;
      }
      const Side row{p_.rows + i * p_.d, pairs[i]}, own{own_class(i, p_.labels[i]), pairs[n + i]};
      const Angle angle = angle_of(pairs[2 * n + i], pairs[3 * n + i]);
      const float logit = pairs[4 * n + i], above = logsumexp[i] - logit;
      const float e = std::exp(-std::abs(above));
      losses[i] = std::max(above, 0.0f) + std::log1p(e);
      // of all other classes together the probability, less what smoothing gives the own one
      const float d_logit = (above < 0 ? e : 1.0f) / (1 + e) - (p_.smoothing - share_);
      if (others)
        losses[i] += p_.smoothing * logit - share_ * (p_.scale * (others[i] - angle.cosine) + logit);
      const float g = p_.scale * row_weight[i] * (share_ * angle.sine - d_logit * with_margin(angle).sine);
      if (d_rows) gradient(row, own, angle.versine, g, true, d_rows + i * p_.d);
      if (d_class) gradient(own, row, angle.versine, g, false, d_class);
    });
  }

 private:
  struct Side {
    const float* x;
    float inverse;
  };

  // versine: 1 - cosine, which keeps its digits where the angle is small.
  struct Angle {
    float cosine, sine, versine;
  };

  // From the squared lengths of difference and sum; a right angle where one side is zeros.
  static Angle angle_of(float apart, float joined) {
    const float both = apart + joined;  // 4, less where one is 0
    if (both == 0) return {0, 1, 1};
    return {(joined - apart) / both, 2 * std::sqrt(apart * joined) / both, 2 * apart / both};
  }

  struct Margined {
    float cosine, sine;
  };

  Margined with_margin(const Angle& angle) const {
    return {angle.cosine * p_.margin_cosine - angle.sine * p_.margin_sine,
            angle.sine * p_.margin_cosine + angle.cosine * p_.margin_sine};
  }

  static constexpr float parallel = 1e-6f;  // settings.py

  const float* own_class(int64_t i, int64_t label) const {
    return p_.weight + (p_.gathered ? i : label) * p_.d;
  }

  float inverse_length(const float* x) const {
    const Norm norm = norm_of(x, p_.d);
    return norm.power / norm.length;
  }

  // Adds or writes the gradient of a from `g`, that of minus its angle with b: along the direction from a to
  // b on the sphere, b - cos(angle) a, made of small differences where the angle is small. versine: 1 - cos.
  void gradient(const Side& a, const Side& b, float versine, float g, bool add, float* out) const {
    const auto towards = [&](int64_t k, int64_t width) {
      const vf x = load_first(a.x + k, width) * a.inverse, y = load_first(b.x + k, width) * b.inverse;
      return y - x + x * versine;
    };
    vf squares = {};
    each_part(p_.d, [&](int64_t k, int64_t width) {
      const vf value = towards(k, width);
      squares += value * value;
    });
    const float sine = std::sqrt(hsum(squares));
    const float by = sine < parallel ? 0.0f : g * a.inverse / sine;
    each_part(p_.d, [&](int64_t k, int64_t width) {
      const vf value = towards(k, width) * by;
      store_first(out + k, add ? load_first(out + k, width) + value : value, width);
    });
  }

  const dml_own p_;
  const float share_;  // of the target that each class has by smoothing
};

}  // namespace DML_ISA
