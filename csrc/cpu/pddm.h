// Scores of pairs of rows by a position-dependent metric unit. Lanes are pairs: a strip of them goes from its
// differences to its scores in the inner caches, and each pair is computed alike wherever it stands.
#pragma once

#include <atomic>

#include "tile.h"

namespace DML_ISA {

// A linear layer with its weights in groups of MR outputs, [group][in][MR], the last filled up with zeros.
struct Layer {
  int64_t out, in;
  const float* bias;
  Buffer<float> packed;

  Layer(const float* weight, const float* bias, int64_t out, int64_t in)
      : out(out), in(in), bias(bias), packed(round_up(out, MR) * in) {
    for (int64_t h = 0; h < round_up(out, MR); h++)
      for (int64_t k = 0; k < in; k++)
        packed[h / MR * MR * in + k * MR + h % MR] = h < out ? weight[h * in + k] : 0.0f;
  }

  // Calls f(h, v, vector) with W b, without the bias, for output h and vector v of the lanes. The inputs b
  // lie [vector][in][VL].
  template <int VECTORS, class F>
  void apply(const float* b, F&& f) const {
    for (int64_t h = 0; h < out; h += MR) {
      vf acc[MR][VECTORS] = {};
      multiply<1, MR, VECTORS>(packed.data() + h * in, b, in * VL, in, acc);
      for (int r = 0; r < std::min<int64_t>(MR, out - h); r++)
        for (int v = 0; v < VECTORS; v++) f(h + r, v, acc[r][v]);
    }
  }
};

inline bool all_finite(const float* x, int64_t size) {
  float sum = 0;  // NaN where a value is NaN or infinite
  for (int64_t k = 0; k < size; k++) sum += x[k] * 0.0f;
  return sum == 0.0f;
}

struct MetricUnit {
  Layer difference, mean, joint;
  const float *score_weight, *score_bias;
  bool normalize, finite;

  MetricUnit(const dml_unit& u, int64_t d)
      : difference(u.difference_weight, u.difference_bias, u.difference_dim, d),
        mean(u.mean_weight, u.mean_bias, u.mean_dim, d),
        joint(u.joint_weight, u.joint_bias, u.joint_dim, u.difference_dim + u.mean_dim),
        score_weight(u.score_weight),
        score_bias(u.score_bias),
        normalize(u.normalize_inputs != 0) {
    finite = all_finite(u.difference_weight, u.difference_dim * d) &&
             all_finite(u.mean_weight, u.mean_dim * d) && all_finite(u.joint_weight, joint.out * joint.in) &&
             all_finite(u.difference_bias, u.difference_dim) && all_finite(u.mean_bias, u.mean_dim) &&
             all_finite(u.joint_bias, joint.out) && all_finite(u.score_weight, joint.out) &&
             all_finite(u.score_bias, 1);
  }
};

// The rows of one side: each with its squared norm, and with half of its product with the layer of means.
struct Halves {
  const float* x;
  int64_t d, width;
  Buffer<float> norm, half;

  Halves(const float* x, int64_t n, int64_t d, int64_t width)
      : x(x), d(d), width(width), norm(n), half(n * width) {}

  const float* row(int64_t i) const { return x + i * d; }
  const float* product(int64_t i) const { return half.data() + i * width; }
};

// Transposes values of VL pairs: load(pair, k, width) gives those from the k-th on, put(k, vector) takes the
// k-th of all pairs.
template <class Load, class Put>
inline void across_pairs(int64_t d, Load&& load, Put&& put) {
  for (int64_t k = 0; k < d; k += VL) {
    const int64_t width = std::min<int64_t>(VL, d - k);
    vf block[VL];
    for (int r = 0; r < VL; r++) block[r] = load(r, k, width);
    transpose(block);
    for (int64_t c = 0; c < width; c++) put(k + c, block[c]);
  }
}

class PairScorer {
 public:
  PairScorer(const dml_pairs& p, const dml_unit& u)
      : p_(p),
        unit_(u, p.d),
        rows_(p.rows, p.n, p.d, u.mean_dim),
        columns_(p.columns, p.columns ? p.m : 0, p.d, u.mean_dim) {}

  bool finite() const { return unit_.finite; }

  // out (n, m): of all pairs; of rows with themselves one of each two.
  void matrix(float* out) {
    std::vector<int64_t> all(std::max(p_.n, p_.m));
    std::iota(all.begin(), all.end(), int64_t{0});
    prepare(rows_, all.data(), p_.n);
    prepare(columns_, all.data(), p_.columns ? p_.m : 0);
    on_items(p_.n, [&](Work& work, int64_t i) {
      const int64_t first = p_.columns ? 0 : i;
      const int64_t* j = all.data() + first;
      float* row = out + i * p_.m + first;
      std::fill_n(work.i.data(), NR, i);
      for_each_strip_of(p_.m - first, [&](auto vectors, int64_t begin, int64_t count) {
        score<vectors>(work, work.i.data(), j + begin, count, row + begin);
      });
      for (int64_t k = 1; !p_.columns && k < p_.m - first; k++) out[(i + k) * p_.m + i] = row[k];
    });
  }

  // out (count,): of rows i with columns j, which are the rows where there are no others.
  void pairs(const int64_t* i, const int64_t* j, int64_t count, float* out) {
    std::vector<int64_t> used(i, i + count), others(j, j + count);
    if (!p_.columns) used.insert(used.end(), j, j + count);
    for (auto* list : {&used, &others}) {
      std::sort(list->begin(), list->end());
      list->erase(std::unique(list->begin(), list->end()), list->end());
    }
    prepare(rows_, used.data(), int64_t(used.size()));
    prepare(columns_, others.data(), p_.columns ? int64_t(others.size()) : 0);
    on_items(round_up(count, NR) / NR, [&](Work& work, int64_t k) {
      const int64_t first = k * NR;
      for_each_strip_of(
          std::min<int64_t>(NR, count - first), [&](auto vectors, int64_t begin, int64_t lanes) {
            score<vectors>(work, i + first + begin, j + first + begin, lanes, out + first + begin);
          });
    });
  }

 private:
  struct Work {
    std::vector<int64_t> i;
    Buffer<float> difference, midpoint, branches;

    explicit Work(const MetricUnit& unit)
        : i(NR),
          difference(NR * unit.difference.in),
          midpoint(NR * unit.difference.in),
          branches(NR * unit.joint.in) {}
  };

  // Calls f(work, item) for items in any order.
  template <class F>
  void on_items(int64_t items, F&& f) {
    const int threads = int(std::clamp<int64_t>(items, 1, p_.threads));
    std::vector<std::unique_ptr<Work>> works;
    for (int k = 0; k < threads; k++) works.emplace_back(new Work(unit_));
    std::atomic<int64_t> next{0};
    on_each_thread(threads, [&](int worker) {
      for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(*works[worker], k);
    });
  }

  // Calls f(vectors, begin, count) for strips of at most NR of so many pairs.
  template <class F>
  static void for_each_strip_of(int64_t pairs, F&& f) {
    in_groups(round_up(pairs, VL) / VL, [&](auto vectors, int64_t first) {
      f(vectors, first * VL, std::min<int64_t>(vectors * VL, pairs - first * VL));
    });
  }

  // Norms and half products of some rows of a side.
  void prepare(Halves& side, const int64_t* rows, int64_t count) {
    on_items(round_up(count, VL) / VL, [&](Work& work, int64_t k) {
      const int64_t* at = rows + k * VL;
      const int64_t lanes = std::min<int64_t>(VL, count - k * VL);
      vf norm = {};
      across_pairs(
          side.d,
          [&](int r, int64_t c, int64_t width) {
            return load_first(side.row(at[std::min<int64_t>(r, lanes - 1)]) + c, width);
          },
          [&](int64_t c, vf values) {
            norm += values * values;
            store(work.difference.data() + c * VL, values);
          });
      for (int r = 0; r < lanes; r++) side.norm[at[r]] = norm[r];
      unit_.mean.apply<1>(work.difference.data(), [&](int64_t h, int, vf values) {
        for (int r = 0; r < lanes; r++) side.half[at[r] * side.width + h] = values[r] * 0.5f;
      });
    });
  }

  // Scores of `count` pairs i[k], j[k]; the lanes beyond repeat the last one.
  template <int VECTORS>
  void score(Work& work, const int64_t* i, const int64_t* j, int64_t count, float* out) const {
    const Halves& others = p_.columns ? columns_ : rows_;
    vf norms[VECTORS], scale[VECTORS];
    vi cancelling[VECTORS], some = {};
    const int64_t d = p_.d, u_width = unit_.difference.out, v_width = unit_.mean.out;
    float *u = work.branches.data(), *v = u + u_width * VL;
    const int64_t panel = unit_.joint.in * VL;
    for (int w = 0; w < VECTORS; w++) {
      int64_t a[VL], b[VL];
      for (int r = 0; r < VL; r++) {
        const int64_t k = std::min<int64_t>(w * VL + r, count - 1);
        a[r] = i[k], b[r] = j[k];
        norms[w][r] = rows_.norm[a[r]] + others.norm[b[r]];
      }
      vf squared = {};
      across_pairs(
          d,
          [&](int r, int64_t k, int64_t width) {
            const vf value = load_first(rows_.row(a[r]) + k, width) - load_first(others.row(b[r]) + k, width);
            return max(value, -value);
          },
          [&](int64_t k, vf values) {
            squared += values * values;
            store(work.difference.data() + (w * d + k) * VL, values);
          });
      scale[w] = unit_.normalize ? inverse_root(squared) : splat(1.0f);
      cancelling[w] = norms[w] * 2.0f - squared < norms[w] * close_share;
      some |= cancelling[w];
      across_pairs(
          v_width,
          [&](int r, int64_t h, int64_t width) {
            return load_first(rows_.product(a[r]) + h, width) + load_first(others.product(b[r]) + h, width);
          },
          [&](int64_t h, vf values) { store(v + w * panel + h * VL, values); });
      if (unit_.normalize || any(cancelling[w]))
        across_pairs(
            d,
            [&](int r, int64_t k, int64_t width) {
              return (load_first(rows_.row(a[r]) + k, width) + load_first(others.row(b[r]) + k, width)) *
                     0.5f;
            },
            [&](int64_t k, vf values) { store(work.midpoint.data() + (w * d + k) * VL, values); });
    }
    unit_.difference.apply<VECTORS>(work.difference.data(), [&](int64_t h, int w, vf values) {
      store(u + w * panel + h * VL, max(vf{}, values * scale[w] + unit_.difference.bias[h]));
    });
    for (int w = 0; w < VECTORS; w++) {
      if (unit_.normalize) scale[w] = inverse_norm(work.midpoint.data() + w * d * VL, d);
      if (any(cancelling[w]))
        unit_.mean.apply<1>(work.midpoint.data() + w * d * VL, [&](int64_t h, int, vf values) {
          float* out = v + w * panel + h * VL;
          store(out, select(cancelling[w], values, load(out)));
        });
      for (int64_t h = 0; h < v_width; h++) {
        float* value = v + w * panel + h * VL;
        store(value, max(vf{}, load(value) * scale[w] + unit_.mean.bias[h]));
      }
      to_length_one(u + w * panel, u_width);
      to_length_one(v + w * panel, v_width);
    }
    vf total[VECTORS] = {};
    unit_.joint.apply<VECTORS>(u, [&](int64_t h, int w, vf values) {
      total[w] += max(vf{}, values + unit_.joint.bias[h]) * unit_.score_weight[h];
    });
    for (int w = 0; w < VECTORS; w++) {
      // a row that is not finite, or whose norm is not, makes its scores NaN
      const vf value = total[w] + *unit_.score_bias + norms[w] * 0.0f;
      const int64_t lanes = std::min<int64_t>(VL, count - w * VL);
      store_first(out + w * VL, value, lanes);
    }
  }

  // 1 / sqrt(a), 0 for 0.
  static vf inverse_root(vf a) { return keep(a > 0.0f, 1.0f / sqrt(a)); }

  // One over the norm of [k][VL] values by lane, 0 for zeros.
  static vf inverse_norm(const float* values, int64_t size) {
    vf squared = {};
    for (int64_t k = 0; k < size; k++) squared += load(values + k * VL) * load(values + k * VL);
    return inverse_root(squared);
  }

  static void to_length_one(float* values, int64_t size) {
    const vf inverse = inverse_norm(values, size);
    for (int64_t k = 0; k < size; k++) store(values + k * VL, load(values + k * VL) * inverse);
  }

  const dml_pairs p_;
  const MetricUnit unit_;
  Halves rows_, columns_;
};

}  // namespace DML_ISA
