// A pair problem ready to be walked: both sides packed, the pairs that count, the scores of a tile.
#pragma once

#include <tuple>
#include "../dmlfast.h"

#include "tile.h"

namespace DML_ISA {

class Pairs {
 public:
  // Columns of their own unless symmetric. Symmetric pairs are walked once, column after row.
  Pairs(const dml_pairs& p, int score, int select, bool symmetric, bool with_gradient)
      : symmetric(symmetric),
        score(score),
        select(select),
        schedule(p.n, symmetric ? p.n : p.m, symmetric),
        threads(schedule.workers(p.threads)),
        row_side_{p.rows, p.n, p.d},
        column_side_{p.columns ? p.columns : p.rows, p.m, p.d} {
    const bool by_label = select == DML_NEGATIVE || select == DML_POSITIVE;
    const int64_t* column_labels = p.columns ? p.column_labels : p.row_labels;
    row_side_.order = by_label ? order_by_label(p.row_labels, p.n) : identity(p.n);
    if (!symmetric) column_side_.order = by_label ? order_by_label(column_labels, p.m) : identity(p.m);
    if (by_label) rank_labels(row_side_, p.row_labels, symmetric ? nullptr : &column_side_, column_labels);
    const std::vector<float> mean = score == DML_DISTANCE
                                        ? mean_row(row_side_, symmetric ? nullptr : &column_side_, threads)
                                        : std::vector<float>(p.d, 0.0f);
    pack(row_side_, mean, with_gradient, threads);
    if (!symmetric) {
      pack(column_side_, mean, with_gradient, threads);
      place_selves(p);
    }
  }

  const Side& rows() const { return row_side_; }
  const Side& columns() const { return symmetric ? row_side_ : column_side_; }
  bool with_selves() const { return !self_.empty(); }
  bool finite() const { return row_side_.finite && columns().finite; }

  // Position of the column that is the row itself, or -1. Symmetric pairs never meet themselves.
  int64_t self(int64_t i) const { return self_.empty() ? -1 : self_[i]; }

  const bool symmetric;
  const int score, select;
  const Schedule schedule;
  const int threads;

  // Calls f(tile) for the tiles of a task.
  template <class F>
  void for_each_tile(const Task& task, F&& f) const {
    const Range rows = schedule.rows(task), columns = schedule.columns(task);
    const bool diagonal = symmetric && task.row_block == task.column_block;
    for (int64_t j = columns.begin; j < columns.end; j += Schedule::tile)
      for (int64_t i = rows.begin; i < (diagonal ? j + 1 : rows.end); i += Schedule::tile)
        f(Tile{{i, std::min(rows.end, i + Schedule::tile)},
               {j, std::min(columns.end, j + Schedule::tile)},
               diagonal && i == j});
  }

  // The rows of a tile that can have a selected pair in the strip.
  Range active(const Strip& strip, int selection) const {
    Range range = strip.rows();
    if (selection == DML_NEGATIVE && range.size() > 0) {
      const auto [low, high] = labels_of(strip);
      if (low == high && row_side_.label[range.begin] == low && row_side_.label[range.end - 1] == high)
        range.end = range.begin;
    }
    if (selection == DML_POSITIVE) {
      range = mixed(range, strip);
      if (range.size() > 0) range.begin = range.begin / MR * MR;
    }
    return range;
  }

  // The rows of a range, which are in the order of their labels, with a label between those of the strip.
  Range mixed(Range range, const Strip& strip) const {
    const auto [low, high] = labels_of(strip);
    const int32_t* labels = row_side_.label.data();
    const int32_t* from = std::lower_bound(labels + range.begin, labels + range.end, low);
    return {from - labels, std::upper_bound(from, labels + range.end, high) - labels};
  }

  bool share_labels(const Tile& tile) const {
    const auto &row = row_side_.label, &column = columns().label;
    return row[tile.rows.begin] <= column[tile.columns.end - 1] &&
           column[tile.columns.begin] <= row[tile.rows.end - 1];
  }

  // Products or distances of the active rows with a strip. True where a pair of rows is close.
  bool scores(Range range, const Strip& strip, float* out) const {
    strip_products(row_side_, range, columns(), strip, out);
    return score == DML_DISTANCE &&
           strip_distances(row_side_, range, columns(), strip, out,
                           [&](int64_t i, int64_t j) { return !(strip.tile.upper && j <= i); });
  }

  // Bounds of a score, for terms that need no running maximum.
  float lowest_score() const {
    return score == DML_DISTANCE ? 0.0f : -row_side_.max_norm * columns().max_norm;
  }
  float highest_score() const {
    return score == DML_DISTANCE ? row_side_.max_norm + columns().max_norm
                                 : row_side_.max_norm * columns().max_norm;
  }

  // The least and the greatest label of a strip.
  std::pair<int32_t, int32_t> labels_of(const Strip& strip) const {
    const Side& side = columns();
    return {side.label[strip.begin], side.label[std::min(strip.end(), side.n) - 1]};
  }

 private:
  static Order identity(int64_t n) {
    Order order(n);
    std::iota(order.begin(), order.end(), int64_t{0});
    return order;
  }
  void place_selves(const dml_pairs& p) {
    if (p.columns && !p.self_index) return;
    Order position(p.m);
    for (int64_t j = 0; j < p.m; j++) position[column_side_.order[j]] = j;
    self_.resize(p.n);
    for (int64_t i = 0; i < p.n; i++) {
      const int64_t row = row_side_.order[i], column = p.columns ? p.self_index[row] : row;
      self_[i] = column < 0 || column >= p.m ? -1 : position[column];
    }
  }

  Side row_side_, column_side_;
  std::vector<int64_t> self_;
};

// The selected lanes of a strip, row by row.
class Selector {
 public:
  using Lanes = vi[NV];

  // Calls f(special, i) for the rows of a range. Special rows, std::true_type, are to be asked for; every
  // pair of the others is selected.
  template <class F>
  void for_each_row(Range range, F&& f) const {
    const Range special = special_rows(range);
    for (int64_t i = range.begin; i < special.begin; i++) f(std::false_type(), i);
    for (int64_t i = special.begin; i < special.end; i++) f(std::true_type(), i);
    for (int64_t i = special.end; i < range.end; i++) f(std::false_type(), i);
  }

  Selector(const Pairs& pairs, const Strip& strip, int selection)
      : pairs_(pairs),
        strip_(strip),
        labels_(pairs.columns().label.data() + strip.begin),
        by_label_(selection == DML_NEGATIVE || selection == DML_POSITIVE),
        positive_(selection == DML_POSITIVE),
        leaves_self_(positive_ || selection == DML_OTHER),
        ragged_(strip.end() > pairs.columns().n),
        first_upper_row_(strip.tile.upper ? strip.begin : std::numeric_limits<int64_t>::max()) {
    if (by_label_) std::tie(low_, high_) = pairs.labels_of(strip);
    for (int v = 0; v < NV; v++) whole_[v] = splat(v < strip.vectors ? -1 : 0);
  }

  // NULL where no pair of row i is selected.
  const Lanes* operator()(int64_t i) {
    const int32_t label = by_label_ ? pairs_.rows().label[i] : 0;
    const bool mixed = by_label_ && label >= low_ && label <= high_;
    if (positive_ && !mixed) return nullptr;
    const int64_t self = leaves_self_ ? pairs_.self(i) - strip_.begin : -1;
    const bool meets_self = self >= 0 && self < strip_.vectors * VL;
    if (!mixed && !ragged_ && i < first_upper_row_ && !meets_self) return &whole_;

    const int32_t first = i < first_upper_row_ ? -1 : int32_t(i - strip_.begin);
    const int32_t last = int32_t(std::min<int64_t>(pairs_.columns().n - strip_.begin, NR));
    vi some = {};
    for (int v = 0; v < NV; v++) {
      const vi column = lane_index() + v * VL;
      lanes_[v] = whole_[v] & (column < last) & (column > first);
      if (meets_self) lanes_[v] &= column != int32_t(self);
      if (mixed && v < strip_.vectors) {
        const vi same = load(labels_ + v * VL) == label;
        lanes_[v] &= positive_ ? same : ~same;
      }
      some |= lanes_[v];
    }
    return any(some) ? &lanes_ : nullptr;
  }

 private:
  Range special_rows(Range range) const {
    const bool selves = leaves_self_ && pairs_.with_selves();
    if (positive_ || ragged_ || selves || strip_.vectors < NV) return range;
    const int64_t upper = std::clamp(first_upper_row_, range.begin, range.end);
    const Range mixed = by_label_ ? pairs_.mixed(range, strip_) : Range{upper, upper};
    if (mixed.size() == 0) return {upper, range.end};
    return {std::min(mixed.begin, upper), upper < range.end ? range.end : mixed.end};
  }

  const Pairs& pairs_;
  const Strip& strip_;
  const int32_t* labels_;
  const bool by_label_, positive_, leaves_self_, ragged_;
  const int64_t
      first_upper_row_;  // from this row on some columns of an upper tile lie on or below the diagonal
  int32_t low_ = 0, high_ = 0;
  Lanes whole_, lanes_;
};

}  // namespace DML_ISA
