// Gradients of a pair problem: the weight of each pair, and weights times rows.
#pragma once

#include "reduce.h"

namespace DML_ISA {

// A statistic and the gradient of the loss with respect to it, by position. Empty where a side has none.
struct Factors {
  std::vector<float> statistic, gradient;

  Factors() = default;
  explicit Factors(const Side& side)
      : statistic(side.panels() * VL + NR, std::numeric_limits<float>::infinity()),
        gradient(side.panels() * VL + NR, 0.0f) {}
  Factors(const Side& side, const float* stat, const float* grad) : Factors(side) {
    for (int64_t i = 0; i < side.n; i++) set(i, stat[side.order[i]], grad[side.order[i]]);
  }
  // A row that selects nothing has the statistic -inf and no part in the gradient: exp(t - inf) * 0.
  void set(int64_t i, float stat, float grad) {
    const bool none = stat == -std::numeric_limits<float>::infinity();
    statistic[i] = none ? std::numeric_limits<float>::infinity() : stat;
    gradient[i] = none ? 0.0f : grad;
  }
};

// What a loss adds to the weights of a row of a strip; the primitive adds nothing.
struct NoMore {
  static constexpr bool visits_all = false;
  auto of(const Strip&) const {
    return [](int64_t, const float*, vf*) {};
  }
};

// A pair whose gradient a product would lose, or for which a product is not worth while.
struct ClosePair {
  int64_t i, j;
  float weight;
};

// Adds weight * (a - b) to a sum.
inline void add_difference(float weight, const float* a, const float* b, const Side& side, int64_t position,
                           Gradient& gradient) {
  for (int64_t k = 0; k < side.d; k += VL) {
    const int64_t count = std::min<int64_t>(VL, side.d - k);
    float* sum = gradient.sum.data() + k / VL * side.spread_stride() + position * VL;
    store(sum, load(sum) + (load_first(a + k, count) - load_first(b + k, count)) * weight);
  }
}

// What a close pair gives to its row and to its column. The gradient is weight * x - sum, so that a
// difference enters the sum with the opposite sign.
inline void add_to_row(const ClosePair& pair, const Pairs& pairs, Gradient& gradient) {
  const float *x = pairs.rows().row(pair.i), *r = pairs.columns().row(pair.j);
  add_difference(pair.weight, r, x, pairs.rows(), pair.i, gradient);
}
inline void add_to_column(const ClosePair& pair, const Pairs& pairs, Gradient& gradient) {
  const float *x = pairs.rows().row(pair.i), *r = pairs.columns().row(pair.j);
  add_difference(pair.weight, x, r, pairs.columns(), pair.j, gradient);
}

// Distances: sum_j W_ij (x_i - x_j) = (sum_j W_ij) x_i - sum_j W_ij x_j. Products: sum_j W_ij x_j.
inline void write_gradient(const Pairs& pairs, const Side& side, const Gradient& gradient, float factor,
                           float* out) {
  parallel_for(pairs.threads, side.n, [&](int64_t i) {
    const float weight = float(gradient.weight[i]);
    for (int64_t k = 0; k < side.d; k += VL) {
      const int64_t at = k / VL * side.spread_stride() + i * VL;
      const vf sum = load(gradient.sum.data() + at);
      const vf value = pairs.score == DML_DISTANCE ? load(side.spread.data() + at) * weight - sum : sum;
      store_first(out + side.order[i] * side.d + k, value * factor, std::min<int64_t>(VL, side.d - k));
    }
  });
}

template <class More = NoMore>
class PairGradient {
 public:
  PairGradient(const Pairs& pairs, const Term& term, const Factors& rows, const Factors& columns,
               bool want_rows, bool want_columns, bool want_bias, More more = {})
      : pairs_(pairs),
        term_(term),
        row_factors_(rows),
        column_factors_(pairs.symmetric ? rows : columns),
        want_rows_(want_rows),
        want_columns_(want_columns && !pairs.symmetric),
        more_(more) {
    if (want_rows_) rows_ = zero_gradient(pairs.rows());
    if (want_columns_) columns_ = zero_gradient(pairs.columns());
    if (want_bias) bias_.assign(pairs.columns().n, 0.0);
  }

  void run(Scores& scores) {
    std::vector<std::unique_ptr<Work>> works;
    for (int i = 0; i < pairs_.threads; i++) works.emplace_back(new Work());
    pairs_.schedule.run(pairs_.threads, [&](int worker, int64_t index, const Task& task, auto& wait) {
      Work& work = *works[worker];
      pairs_.for_each_tile(task, [&](const Tile& tile) {
        if (!weigh(work, worker, index, tile, scores)) return;
        wait();
        accumulate(work, tile);
      });
    });
  }

  void write_rows(float* out) const { write_gradient(pairs_, pairs_.rows(), rows_, 1.0f, out); }
  void write_columns(float* out) const { write_gradient(pairs_, pairs_.columns(), columns_, 1.0f, out); }
  void write_bias(float* out) const {
    for (size_t j = 0; j < bias_.size(); j++) out[pairs_.columns().order[j]] = float(bias_[j]);
  }

 private:
  // What one worker holds of a tile before it is the tile's turn.
  struct Work {
    std::vector<ClosePair> close;
    Buffer<float> weights = Buffer<float>(tile_floats);
    float row_sum[Schedule::tile][VL], column_sum[Schedule::tile + NR], bias_sum[Schedule::tile + NR];
    float row_factor[Schedule::tile], column_factor[Schedule::tile + NR];
  };

  // Writes the weights of a tile: (dloss / dscore) / score for distances, dloss / dscore for products. False
  // where all are zero.
  bool weigh(Work& work, int worker, int64_t index, const Tile& tile, Scores& scores) {
    work.close.clear();
    std::fill_n(work.row_sum[0], tile.rows.size() * VL, 0.0f);
    std::fill_n(work.column_sum, tile.columns.size() + NR, 0.0f);
    std::fill_n(work.bias_sum, tile.columns.size() + NR, 0.0f);
    const float shift = factorise(work, tile);
    bool some = false;
    for_each_strip(tile, [&](const Strip& strip) {
      Range range = pairs_.active(strip, More::visits_all ? int(DML_ALL) : pairs_.select);
      if (range.size() <= 0) range = {tile.rows.begin, tile.rows.begin};
      clear(work, strip, {tile.rows.begin, range.begin});
      clear(work, strip, {range.end, tile.rows.end});
      if (range.size() == 0) return;
      some = true;
      weigh_strip(work, strip, scores.get(worker, index, range, strip), shift);
    });
    return some;
  }

  // The raw weight of a pair, in the quickest form that its term allows.
  void weigh_strip(Work& work, const Strip& strip, const Scores::OfStrip& scores, float shift) {
    const float* row_factor = work.row_factor - strip.tile.rows.begin;
    const float* column_factor = work.column_factor + strip.column();
    if (term_.floor)
      weigh_rows(work, strip, scores,
                 [&](int64_t i, int v, vf score) { return weight_above(i, score, strip, v); });
    else if (!std::isfinite(shift))
      weigh_rows(work, strip, scores, [&](int64_t i, int v, vf score) { return weight(i, score, strip, v); });
    else if (term_.logsumexp && !term_.bias)
      weigh_rows(work, strip, scores,
                 [=, scale = term_.scale, offset = term_.offset - shift](int64_t i, int v, vf score) {
                   return exp(score * scale + offset) * (load(column_factor + v * VL) + row_factor[i]);
                 });
    else if (term_.hinge)
      weigh_rows(work, strip, scores, [&](int64_t i, int v, vf score) {
        return term_.slope_of(term_(score, strip, v, 0.0f)) * (load(column_factor + v * VL) + row_factor[i]);
      });
    else
      weigh_rows(work, strip, scores, [&](int64_t i, int v, vf score) {
        const vf factors = load(column_factor + v * VL) + row_factor[i];
        return term_.logsumexp ? exp(term_(score, strip, v, shift)) * factors : factors;
      });
  }

  template <class Weight>
  void weigh_rows(Work& work, const Strip& strip, const Scores::OfStrip& scores, Weight&& weight) {
    const int64_t first = strip.column(), first_row = strip.tile.rows.begin;
    const bool distances = pairs_.score == DML_DISTANCE, with_bias = !bias_.empty();
    const float scale = term_.scale, *row_norm = pairs_.rows().norm.data();
    const float* column_norm = pairs_.columns().norm.data() + strip.begin;
    vf column_sum[NV] = {}, bias_sum[NV] = {};
    Selector selected(pairs_, strip, pairs_.select);
    auto more = more_.of(strip);
    selected.for_each_row(scores.range, [&](auto special, int64_t i) {
      const float* s = scores.row(i);
      const Selector::Lanes* lanes = special ? selected(i) : nullptr;
      vf w[NV] = {};
      for (int v = 0; v < NV && (lanes || !special); v++) {
        w[v] = weight(i, v, load(s + v * VL));
        if (special) w[v] = keep((*lanes)[v], w[v]);
        if (with_bias) bias_sum[v] += w[v];
        w[v] *= scale;
      }
      if (special) more(i, s, w);
      float* out = work.weights.data() + (i - first_row) * tile_stride + first;
      vf row_sum = {};
      for (int v = 0; v < NV; v++) {
        if (distances) {
          const vf distance = load(s + v * VL);
          const vi counts = (distance > 0.0f) & (w[v] != 0.0f);
          w[v] = keep(counts, w[v] * reciprocal(distance));
          if (scores.close) {
            const vf norms = load(column_norm + v * VL) + row_norm[i];
            const vi close = counts & (distance * distance < norms * close_share);
            if (any(close)) w[v] = set_aside(work, i, strip.begin + v * VL, close, w[v]);
          }
        }
        row_sum += w[v];
        column_sum[v] += w[v];
        if (!special || v < strip.vectors) store(out + v * VL, w[v]);
      }
      store(work.row_sum[i - first_row], load(work.row_sum[i - first_row]) + row_sum);
    });
    for (int v = 0; v < NV; v++) {
      store(work.column_sum + first + v * VL, column_sum[v]);
      store(work.bias_sum + first + v * VL, bias_sum[v]);
    }
  }

  // Takes the weights of close pairs out of the tile, to be accumulated by difference.
  static vf set_aside(Work& work, int64_t i, int64_t first_column, vi close, vf w) {
    for (int lane = 0; lane < VL; lane++)
      if (close[lane]) work.close.push_back({i, first_column + lane, w[lane]});
    return keep(~close, w);
  }

  // Weights exp(t - L_i) g_i + exp(t - L_j) g_j by two exponentials: every exponent is at most 0.
  vf weight(int64_t i, vf score, const Strip& strip, int v) const {
    const vf t = term_(score, strip, v, 0.0f);
    const vf w = exp(t - row_factors_.statistic[i]) * row_factors_.gradient[i];
    if (column_factors_.statistic.empty()) return w;
    const int64_t j = strip.begin + v * VL;
    return w +
           exp(t - load(column_factors_.statistic.data() + j)) * load(column_factors_.gradient.data() + j);
  }

  // The same for terms of any kind, of which those above the floor of a row count for that row.
  vf weight_above(int64_t i, vf score, const Strip& strip, int v) const {
    const vf t = term_(score, strip, v, 0.0f);
    auto counted = [&](vf floor, vf statistic, vf gradient) {
      return keep(t > floor, term_.logsumexp ? exp(t - statistic) * gradient : gradient);
    };
    vf w = counted(splat(term_.floor[i]), splat(row_factors_.statistic[i]), splat(row_factors_.gradient[i]));
    if (pairs_.symmetric) {
      const int64_t j = strip.begin + v * VL;
      w += counted(load(term_.floor.data() + j), load(column_factors_.statistic.data() + j),
                   load(column_factors_.gradient.data() + j));
    }
    return term_.hinge ? w * term_.slope_of(t) : w;
  }

  // Where the statistics of a tile lie close together, one exponential serves both of its sides:
  // exp(t - shift) (g_i exp(shift - L_i) + g_j exp(shift - L_j)). Fills the factors g exp(shift - L) and
  // returns the shift, the least L; NaN where they do not lie close, or are large. Sums need no exponential.
  float factorise(Work& work, const Tile& tile) const {
    float low = std::numeric_limits<float>::infinity(), high = -low;
    auto widen = [&](const Factors& f, Range range) {
      if (f.statistic.empty()) return;
      for (int64_t i = range.begin; i < range.end; i++) {
        low = std::min(low, f.statistic[i]);
        if (f.statistic[i] < std::numeric_limits<float>::infinity()) high = std::max(high, f.statistic[i]);
      }
    };
    widen(row_factors_, tile.rows);
    widen(column_factors_, tile.columns);
    if (!term_.logsumexp || high < low) low = high = 0;  // sums, or nothing selected
    // a larger L is rounded by more than 2^-14, and a term that is all of it would not weigh 1
    const bool exact = std::max(-low, high) <= 1024.0f;
    if (!(exact && high - low <= safe_span)) return std::numeric_limits<float>::quiet_NaN();
    auto fill = [&](const Factors& f, Range range, float* out) {
      for (int64_t i = range.begin; i < range.end; i += VL) {
        vf factor = {};
        if (!f.statistic.empty()) {
          factor = load(f.gradient.data() + i);
          if (term_.logsumexp) factor *= exp(splat(low) - load(f.statistic.data() + i));
        }
        store(out + (i - range.begin), factor);
      }
    };
    fill(row_factors_, tile.rows, work.row_factor);
    fill(column_factors_, tile.columns, work.column_factor);
    return low;
  }

  static void clear(Work& work, const Strip& strip, Range range) {
    float* w = work.weights.data() + strip.column();
    for (int64_t i = range.begin; i < range.end; i++)
      std::memset(w + (i - strip.tile.rows.begin) * tile_stride, 0, strip.vectors * VL * sizeof(float));
  }

  void accumulate(const Work& work, const Tile& tile) {
    Gradient* of_columns = pairs_.symmetric ? &rows_ : want_columns_ ? &columns_ : nullptr;
    if (want_rows_) {
      add_weighted_columns(work.weights.data(), tile, pairs_.columns(), rows_);
      for (int64_t r = 0; r < tile.rows.size(); r++)
        rows_.weight[tile.rows.begin + r] += hsum(load(work.row_sum[r]));
    }
    if (of_columns) {
      add_weighted_rows(work.weights.data(), tile, pairs_.rows(), *of_columns);
      for (int64_t c = 0; c < tile.columns.size(); c++)
        of_columns->weight[tile.columns.begin + c] += work.column_sum[c];
    }
    for (const ClosePair& pair : work.close) {
      if (want_rows_) add_to_row(pair, pairs_, rows_);
      if (of_columns) add_to_column(pair, pairs_, *of_columns);
    }
    for (int64_t c = 0; c < tile.columns.size() && !bias_.empty(); c++)
      bias_[tile.columns.begin + c] += work.bias_sum[c];
  }

  const Pairs& pairs_;
  const Term& term_;
  const Factors& row_factors_;
  const Factors& column_factors_;
  const bool want_rows_, want_columns_;
  const More more_;
  Gradient rows_, columns_;
  std::vector<double> bias_;
};

}  // namespace DML_ISA
