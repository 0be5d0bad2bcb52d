// Statistics of the rows and columns of a pair problem: log-sum-exps, sums or maxima over the selected pairs.
#pragma once

#include "pairs.h"

namespace DML_ISA {

// Exponents that span less than this need no running maximum: exp(-60) is far from the smallest float.
constexpr float safe_span = 60.0f;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

struct Term {
  bool logsumexp, maximum, hinge, squared, smooth;
  float scale, offset;
  Buffer<float> bias;   // by column position, padded; empty without a bias
  Buffer<float> floor;  // by row position, padded; empty without floors
  float lowest_bias = 0, highest_bias = 0;
  bool finite;

  Term(const dml_term& term, const Pairs& pairs)
      : logsumexp(term.reduce == DML_LOGSUMEXP),
        maximum(term.reduce == DML_MAX),
        hinge(!logsumexp && !maximum && term.reduce != DML_SUM),
        squared(term.reduce == DML_SQUARED_HINGE),
        smooth(term.reduce == DML_SOFTPLUS),
        scale(term.scale),
        offset(term.offset),
        finite(std::isfinite(scale) && std::isfinite(offset)) {
    const Side &rows = pairs.rows(), &columns = pairs.columns();
    if (term.row_floor) {
      floor = Buffer<float>(rows.panels() * VL + NR);
      floor.fill(0);
      for (int64_t i = 0; i < rows.n; i++) floor[i] = term.row_floor[rows.order[i]];
    }
    if (!term.column_bias || columns.n == 0) return;
    bias = Buffer<float>(columns.panels() * VL + NR);
    bias.fill(0);
    for (int64_t j = 0; j < columns.n; j++) {
      bias[j] = term.column_bias[columns.order[j]];
      finite &= bool(std::isfinite(bias[j]));
    }
    lowest_bias = *std::min_element(bias.data(), bias.data() + columns.n);
    highest_bias = *std::max_element(bias.data(), bias.data() + columns.n);
  }
  vf operator()(vf score, const Strip& strip, int v, float shift) const {
    const vf t = score * scale + (offset - shift);
    return bias ? t + load(bias.data() + strip.begin + v * VL) : t;
  }
  vf hinge_of(vf t) const {
    const vf h = max(t, vf{});
    if (smooth) return h + log1p(decay(t, h));
    return squared ? h * h : h;
  }
  // d hinge / d term.
  vf slope_of(vf t) const {
    const vf h = max(t, vf{});
    if (smooth) {
      const vf e = decay(t, h);
      return (t > 0.0f ? splat(1.0f) : e) / (1.0f + e);
    }
    return squared ? h * 2.0f : keep(t > 0.0f, splat(1.0f));
  }
  // exp(-|t|) of a term and its hinge; 0 where it vanishes.
  static vf decay(vf t, vf hinge) {
    const vf down = t - hinge - hinge;
    return keep(down > -87.0f, exp(down));
  }
  float highest(const Pairs& p) const {
    return std::max(scale * p.lowest_score(), scale * p.highest_score()) + offset + highest_bias;
  }
  float lowest(const Pairs& p) const {
    return std::min(scale * p.lowest_score(), scale * p.highest_score()) + offset + lowest_bias;
  }
};

// exp(top) * sum is the sum of the exponentials so far. Plain sums have a top of 0, those of hinges the
// number of hinges above 0, and maxima are a top alone.
struct Statistic {
  std::vector<float> top;
  std::vector<double> sum;

  Statistic(int64_t n, float top) : top(n, top), sum(n, 0.0) {}
  void add(int64_t i, float part_top, double part_sum) {
    if (part_top > top[i]) {
      sum[i] *= std::exp(double(top[i]) - part_top);
      top[i] = part_top;
    }
    sum[i] += part_top == top[i] ? part_sum : part_sum * std::exp(double(part_top) - top[i]);
  }
  float logsumexp(int64_t i) const { return sum[i] > 0 ? float(top[i] + std::log(sum[i])) : minus_infinity; }
};

// The scores of every tile, kept where they are few, so that the gradient need not compute them again.
class Scores {
 public:
  Scores(const Pairs& pairs, bool keep) : pairs_(pairs), scratch_(pairs.threads * scratch_floats) {
    const Schedule& s = pairs.schedule;
    const int64_t strips = round_up(s.column_block_size(), NR) / NR + 1;
    stride_ = s.row_block_size() * NR * strips;
    if (keep && s.row_block_size() <= Schedule::tile && s.column_block_size() <= Schedule::tile &&
        stride_ * s.size() * int64_t(sizeof(float)) <= keep_bytes) {
      kept_ = Buffer<float>(stride_ * s.size());
      known_.assign(s.size() * strips, unknown);
      strips_ = strips;
    }
  }
  // The active rows of a strip: row i at row(i). close: whether a pair of the strip is close.
  struct OfStrip {
    const float* first;
    Range range;
    bool close;
    const float* row(int64_t i) const { return first + (i - range.begin) * NR; }
  };
  OfStrip get(int worker, int64_t task, Range range, const Strip& strip) {
    if (!kept_) {
      float* out = scratch_.data() + worker * scratch_floats;
      const bool close = pairs_.scores(range, strip, out);
      return {out, range, close};
    }
    float* out = kept_.data() + task * stride_ + strip.index * pairs_.schedule.row_block_size() * NR;
    State& state = known_[task * strips_ + strip.index];
    if (state == unknown) state = pairs_.scores(strip.rows(), strip, out) ? with_close : without_close;
    return {out + (range.begin - strip.tile.rows.begin) * NR, range, state == with_close};
  }

 private:
  static constexpr int64_t keep_bytes = 16 << 20;
  static constexpr int64_t scratch_floats = (Schedule::tile + MR) * NR;
  const Pairs& pairs_;
  Buffer<float> scratch_, kept_;
  enum State : char { unknown, without_close, with_close };
  std::vector<State> known_;
  int64_t stride_ = 0, strips_ = 0;
};

class Reduction {
 public:
  // Statistics of the rows; of the columns too where asked, and where they are the rows.
  Reduction(const Pairs& pairs, const Term& term, bool with_columns)
      : pairs_(pairs),
        term_(term),
        with_columns_(with_columns || pairs.symmetric),
        running_(term.logsumexp && (term.floor || !(term.highest(pairs) - term.lowest(pairs) <= safe_span))),
        shift_(term.logsumexp && !running_ ? term.highest(pairs) : 0.0f),
        start_(running_ || term.maximum ? minus_infinity : shift_),
        rows_(pairs.rows().n, start_),
        columns_(with_columns && !pairs.symmetric ? pairs.columns().n : 0, start_) {}

  void run(Scores& scores) {
    std::vector<Partial> partials(pairs_.threads);
    pairs_.schedule.run(pairs_.threads, [&](int worker, int64_t index, const Task& task, auto& wait) {
      Partial& part = partials[worker];
      pairs_.for_each_tile(task, [&](const Tile& tile) {
        part.clear(tile, running_ || term_.maximum ? minus_infinity : 0.0f);
        for_each_strip(tile, [&](const Strip& strip) {
          const Range range = pairs_.active(strip, pairs_.select);
          if (range.size() <= 0) return;
          const Scores::OfStrip found = scores.get(worker, index, range, strip);
          running_        ? add_running(part, strip, found)
          : term_.maximum ? add_maxima(part, strip, found)
          : term_.floor   ? add_above(part, strip, found)
          : term_.hinge   ? add_hinges(part, strip, found)
                          : add(part, strip, found);
        });
        wait();
        merge(part, tile);
      });
    });
  }

  // Position i of the rows; of the columns, which are the rows where the pairs are symmetric.
  float row(int64_t i) const { return value(rows_, i); }
  float column(int64_t j) const { return value(pairs_.symmetric ? rows_ : columns_, j); }
  // How many hinges are above 0.
  float row_count(int64_t i) const { return rows_.top[i]; }
  float column_count(int64_t j) const { return (pairs_.symmetric ? rows_ : columns_).top[j]; }

 private:
  // What one tile adds, before it is the tile's turn.
  struct Partial {
    float row_sum[Schedule::tile][VL], row_top[Schedule::tile];
    float column_sum[Schedule::tile + NR], column_top[Schedule::tile + NR];
    void clear(const Tile& tile, float top) {
      std::fill_n(row_sum[0], tile.rows.size() * VL, 0.0f);
      std::fill_n(column_sum, tile.columns.size() + NR, 0.0f);
      std::fill_n(row_top, tile.rows.size(), top);
      std::fill_n(column_top, tile.columns.size() + NR, top);
    }
  };

  void add(Partial& part, const Strip& strip, const Scores::OfStrip& scores) {
    vf column[NV] = {};
    Selector selected(pairs_, strip, pairs_.select);
    selected.for_each_row(scores.range, [&](auto special, int64_t i) {
      const Selector::Lanes* lanes = special ? selected(i) : nullptr;
      if (special && !lanes) return;
      vf row = {};
      for (int v = 0; v < NV; v++) {
        vf t = term_(load(scores.row(i) + v * VL), strip, v, shift_);
        if (term_.logsumexp) t = exp(t);
        if (special) t = keep((*lanes)[v], t);
        row += t;
        column[v] += t;
      }
      float* sum = part.row_sum[i - strip.tile.rows.begin];
      store(sum, load(sum) + row);
    });
    for (int v = 0; v < NV; v++) store(part.column_sum + strip.column() + v * VL, column[v]);
  }

  // The lanes of a term that count for its row, and those that count for its columns.
  struct Counted {
    vi row, column;
  };
  Counted counted(vi lanes, vf t, int64_t i, const Strip& strip, int v) const {
    if (!term_.floor) return {lanes, lanes};
    const vi row = lanes & (t > term_.floor[i]);
    if (!with_columns_) return {row, lanes};
    return {row, lanes & (t > load(term_.floor.data() + strip.begin + v * VL))};
  }

  // The same with a running maximum for each row and column, for terms of any size.
  void add_running(Partial& part, const Strip& strip, const Scores::OfStrip& scores) {
    const vf nothing = splat(minus_infinity);
    float* column_top = part.column_top + strip.column();
    float* column_sum = part.column_sum + strip.column();
    Selector selected(pairs_, strip, pairs_.select);
    for (int64_t i = scores.range.begin; i < scores.range.end; i++) {
      const Selector::Lanes* lanes = selected(i);
      if (!lanes) continue;
      const float* s = scores.row(i);
      Counted counts[NV];
      vf t[NV], largest = nothing;
      for (int v = 0; v < NV; v++) {
        t[v] = term_(load(s + v * VL), strip, v, 0.0f);
        counts[v] = counted((*lanes)[v], t[v], i, strip, v);
        largest = max(largest, ::DML_ISA::select(counts[v].row, t[v], nothing));
      }
      float& top = part.row_top[i - strip.tile.rows.begin];
      const float new_top = std::max(top, hmax(largest));
      if (new_top > minus_infinity) {
        float* sum = part.row_sum[i - strip.tile.rows.begin];
        vf row = load(sum) * std::exp(top - new_top);
        for (int v = 0; v < NV; v++) row += keep(counts[v].row, exp(t[v] - new_top));
        store(sum, row);
        top = new_top;
      }
      for (int v = 0; v < NV && with_columns_; v++) {
        const vf old = load(column_top + v * VL);
        const vf higher = max(old, ::DML_ISA::select(counts[v].column, t[v], nothing));
        const vf kept = keep(old > nothing, load(column_sum + v * VL) * exp(old - higher));
        store(column_sum + v * VL, kept + keep(counts[v].column, exp(t[v] - higher)));
        store(column_top + v * VL, higher);
      }
    }
  }

  // Maxima alone, which are the tops.
  void add_maxima(Partial& part, const Strip& strip, const Scores::OfStrip& scores) {
    float* column_top = part.column_top + strip.column();
    Selector selected(pairs_, strip, pairs_.select);
    for (int64_t i = scores.range.begin; i < scores.range.end; i++) {
      const Selector::Lanes* lanes = selected(i);
      if (!lanes) continue;
      vf largest = splat(minus_infinity);
      for (int v = 0; v < NV; v++) {
        const vf t = term_(load(scores.row(i) + v * VL), strip, v, 0.0f);
        const vf counts = ::DML_ISA::select((*lanes)[v], t, splat(minus_infinity));
        largest = max(largest, counts);
        store(column_top + v * VL, max(load(column_top + v * VL), counts));
      }
      float& top = part.row_top[i - strip.tile.rows.begin];
      top = std::max(top, hmax(largest));
    }
  }

  // Sums and hinges of the terms above a floor.
  void add_above(Partial& part, const Strip& strip, const Scores::OfStrip& scores) {
    float *column_sum = part.column_sum + strip.column(), *column_top = part.column_top + strip.column();
    Selector selected(pairs_, strip, pairs_.select);
    for (int64_t i = scores.range.begin; i < scores.range.end; i++) {
      const Selector::Lanes* lanes = selected(i);
      if (!lanes) continue;
      vf row = {}, count = {};
      for (int v = 0; v < NV; v++) {
        const vf t = term_(load(scores.row(i) + v * VL), strip, v, 0.0f);
        const Counted counts = counted((*lanes)[v], t, i, strip, v);
        const vf value = term_.hinge ? term_.hinge_of(t) : t;
        const vf one = keep(value > 0.0f, splat(1.0f));
        row += keep(counts.row, value);
        count += keep(counts.row, one);
        store(column_sum + v * VL, load(column_sum + v * VL) + keep(counts.column, value));
        store(column_top + v * VL, load(column_top + v * VL) + keep(counts.column, one));
      }
      const int64_t r = i - strip.tile.rows.begin;
      store(part.row_sum[r], load(part.row_sum[r]) + row);
      part.row_top[r] += hsum(count);
    }
  }

  // Hinges, and in the place of tops the numbers of those above 0.
  void add_hinges(Partial& part, const Strip& strip, const Scores::OfStrip& scores) {
    vf column[NV] = {}, column_count[NV] = {};
    Selector selected(pairs_, strip, pairs_.select);
    selected.for_each_row(scores.range, [&](auto special, int64_t i) {
      const Selector::Lanes* lanes = special ? selected(i) : nullptr;
      if (special && !lanes) return;
      vf hinge[NV];
      vi some = {};
      for (int v = 0; v < NV; v++) {
        hinge[v] = term_.hinge_of(term_(load(scores.row(i) + v * VL), strip, v, 0.0f));
        if (special) hinge[v] = keep((*lanes)[v], hinge[v]);
        some |= hinge[v] > 0.0f;
      }
      if (!any(some)) return;
      vf row = {}, count = {};
      for (int v = 0; v < NV; v++) {
        const vf one = keep(hinge[v] > 0.0f, splat(1.0f));
        row += hinge[v];
        count += one;
        column[v] += hinge[v];
        column_count[v] += one;
      }
      const int64_t r = i - strip.tile.rows.begin;
      store(part.row_sum[r], load(part.row_sum[r]) + row);
      part.row_top[r] += hsum(count);
    });
    for (int v = 0; v < NV; v++) {
      store(part.column_sum + strip.column() + v * VL, column[v]);
      store(part.column_top + strip.column() + v * VL, column_count[v]);
    }
  }

  void merge(const Partial& part, const Tile& tile) {
    for (int64_t r = 0; r < tile.rows.size(); r++)
      merge(rows_, tile.rows.begin + r, part.row_top[r], hsum(load(part.row_sum[r])));
    if (!with_columns_) return;
    Statistic& columns = pairs_.symmetric ? rows_ : columns_;
    for (int64_t c = 0; c < tile.columns.size(); c++)
      merge(columns, tile.columns.begin + c, part.column_top[c], part.column_sum[c]);
  }
  void merge(Statistic& statistic, int64_t i, float top, float sum) {
    if (running_) {
      if (sum > 0) statistic.add(i, top, sum);
      return;
    }
    statistic.sum[i] += sum;
    if (term_.hinge) statistic.top[i] += top;
    if (term_.maximum) statistic.top[i] = std::max(statistic.top[i], top);
  }
  float value(const Statistic& statistic, int64_t i) const {
    if (term_.maximum) return statistic.top[i];
    return term_.logsumexp ? statistic.logsumexp(i) : float(statistic.sum[i]);
  }

  const Pairs& pairs_;
  const Term& term_;
  const bool with_columns_, running_;
  const float shift_, start_;
  Statistic rows_, columns_;
};

}  // namespace DML_ISA
