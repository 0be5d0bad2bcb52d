// The lifted structured loss: log-sum-exps over negatives, a pass over the positive pairs, one gradient of
// both.
#pragma once

#include "gradient.h"

namespace DML_ISA {

// J = D + log(exp(L_i) + exp(L_j)) for a vector of positive pairs; hinge = max(J, 0), 0 where neither has a
// negative. row_share and column_share are dJ / dL_i and dJ / dL_j.
struct PositiveTerm {
  vf hinge, row_share, column_share;

  PositiveTerm(vf distance, vf row, vf column) {
    const vf high = max(row, column), low = row > column ? column : row;
    const vi defined = high > minus_infinity;
    const vf ratio = exp(low - high);
    hinge = keep(defined, max(distance + high + log1p(ratio), vf{}));
    const vf larger = 1.0f / (1.0f + ratio), smaller = ratio * larger;
    row_share = row >= column ? larger : smaller;
    column_share = row >= column ? smaller : larger;
  }
};

class Lifted {
 public:
  Lifted(const dml_pairs& problem, float margin, bool with_gradient)
      : pairs_(problem, DML_DISTANCE, DML_NEGATIVE, problem.columns == nullptr, with_gradient),
        term_(dml_term{DML_DISTANCE, DML_NEGATIVE, DML_LOGSUMEXP, -1.0f, margin, nullptr, nullptr}, pairs_),
        scores_(pairs_, with_gradient) {}

  bool finite() const { return pairs_.finite() && term_.finite; }

  float loss() {
    Reduction negatives(pairs_, term_, !pairs_.symmetric);
    negatives.run(scores_);
    take(negatives);
    const double sum = sum_positives();
    pairs_counted_ = count_positives();
    return pairs_counted_ ? float(sum / (2.0 * double(pairs_counted_))) : 0.0f;
  }

  // After loss(). Either may be NULL; d_columns is where the pairs have columns of their own.
  void gradient(float* d_rows, float* d_columns) {
    const float share = pairs_counted_ ? 1.0f / float(pairs_counted_) : 0.0f;
    const Factors rows = factors(pairs_.rows(), row_stat_, row_grad_, share);
    const Factors columns =
        pairs_.symmetric ? Factors() : factors(pairs_.columns(), column_stat_, column_grad_, share);
    PairGradient<PositiveWeights> gradient(pairs_, term_, rows, columns, d_rows != nullptr,
                                           d_columns != nullptr, false, PositiveWeights{*this, share});
    gradient.run(scores_);
    if (d_rows) gradient.write_rows(d_rows);
    if (d_columns) gradient.write_columns(d_columns);
  }

 private:
  struct PositiveWeights {
    static constexpr bool visits_all = true;
    const Lifted& lifted;
    const float share;
    auto of(const Strip& strip) const {
      return [this, &strip, selected = Selector(lifted.pairs_, strip, DML_POSITIVE)](
                 int64_t i, const float* s, vf* w) mutable {
        const Selector::Lanes* lanes = selected(i);
        for (int v = 0; v < NV && lanes; v++)
          if (any((*lanes)[v])) w[v] += keep((*lanes)[v], lifted.positive(i, strip, v, s).hinge * share);
      };
    }
  };

  PositiveTerm positive(int64_t i, const Strip& strip, int v, const float* s) const {
    const std::vector<float>& column_stat = pairs_.symmetric ? row_stat_ : column_stat_;
    return {load(s + v * VL), splat(row_stat_[i]), load(column_stat.data() + strip.begin + v * VL)};
  }

  void take(const Reduction& negatives) {
    auto values = [](const Side& side, auto&& value) {
      std::vector<float> out(side.panels() * VL + NR, minus_infinity);
      for (int64_t i = 0; i < side.n; i++) out[i] = value(i);
      return out;
    };
    row_stat_ = values(pairs_.rows(), [&](int64_t i) { return negatives.row(i); });
    if (!pairs_.symmetric)
      column_stat_ = values(pairs_.columns(), [&](int64_t j) { return negatives.column(j); });
  }

  // Sums hinge^2 and collects |P| dloss / dL for both sides.
  double sum_positives() {
    struct Partial {
      float loss[Schedule::tile][VL], row[Schedule::tile][VL], column[Schedule::tile + NR];
      void clear(const Tile& tile) {
        std::fill_n(loss[0], tile.rows.size() * VL, 0.0f);
        std::fill_n(row[0], tile.rows.size() * VL, 0.0f);
        std::fill_n(column, tile.columns.size() + NR, 0.0f);
      }
    };
    std::vector<Partial> partials(pairs_.threads);
    std::vector<double> row_loss(pairs_.rows().n, 0.0);
    row_grad_.assign(pairs_.rows().n, 0.0);
    if (!pairs_.symmetric) column_grad_.assign(pairs_.columns().n, 0.0);
    std::vector<double>& column_grad = pairs_.symmetric ? row_grad_ : column_grad_;
    pairs_.schedule.run(pairs_.threads, [&](int worker, int64_t index, const Task& task, auto& wait) {
      Partial& part = partials[worker];
      pairs_.for_each_tile(task, [&](const Tile& tile) {
        if (!pairs_.share_labels(tile)) return;
        part.clear(tile);
        for_each_strip(tile, [&](const Strip& strip) {
          const Range range = pairs_.active(strip, DML_POSITIVE);
          if (range.size() <= 0) return;
          const Scores::OfStrip scores = scores_.get(worker, index, range, strip);
          vf column[NV] = {};
          Selector selected(pairs_, strip, DML_POSITIVE);
          for (int64_t i = range.begin; i < range.end; i++) {
            const Selector::Lanes* lanes = selected(i);
            if (!lanes) continue;
            const float* s = scores.row(i);
            vf loss = {}, row = {};
            for (int v = 0; v < NV; v++) {
              if (!any((*lanes)[v])) continue;
              const PositiveTerm term = positive(i, strip, v, s);
              const vf hinge = keep((*lanes)[v], term.hinge);
              loss += hinge * hinge;
              row += hinge * keep((*lanes)[v], term.row_share);
              column[v] += hinge * keep((*lanes)[v], term.column_share);
            }
            const int64_t r = i - tile.rows.begin;
            store(part.loss[r], load(part.loss[r]) + loss);
            store(part.row[r], load(part.row[r]) + row);
          }
          for (int v = 0; v < NV; v++) store(part.column + strip.column() + v * VL, column[v]);
        });
        wait();
        for (int64_t r = 0; r < tile.rows.size(); r++) {
          row_loss[tile.rows.begin + r] += hsum(load(part.loss[r]));
          row_grad_[tile.rows.begin + r] += hsum(load(part.row[r]));
        }
        for (int64_t c = 0; c < tile.columns.size(); c++)
          column_grad[tile.columns.begin + c] += part.column[c];
      });
    });
    return std::accumulate(row_loss.begin(), row_loss.end(), 0.0);
  }

  int64_t count_positives() const {
    const Side &rows = pairs_.rows(), &columns = pairs_.columns();
    int64_t count = 0, j = 0;
    for (int64_t i = 0; i < rows.n;) {
      const int32_t label = rows.label[i];
      int64_t of_rows = 0, of_columns = 0;
      for (; i < rows.n && rows.label[i] == label; i++) {
        of_rows++;
        if (pairs_.self(i) >= 0 && columns.label[pairs_.self(i)] == label) count--;
      }
      while (j < columns.n && columns.label[j] < label) j++;
      for (; j < columns.n && columns.label[j] == label; j++) of_columns++;
      count += pairs_.symmetric ? of_rows * (of_rows - 1) / 2 : of_rows * of_columns;
    }
    return count;
  }

  static Factors factors(const Side& side, const std::vector<float>& stat, const std::vector<double>& grad,
                         float share) {
    Factors out(side);
    for (int64_t i = 0; i < side.n; i++) out.set(i, stat[i], float(grad[i] * share));
    return out;
  }

  const Pairs pairs_;
  const Term term_;
  Scores scores_;
  std::vector<float> row_stat_, column_stat_;  // by position, padded
  std::vector<double> row_grad_, column_grad_;
  int64_t pairs_counted_ = 0;
};

}  // namespace DML_ISA
