// Boosted losses of learners on groups of columns: losses and gradient in one pass over tiles of pairs, each
// learner's weights made of what the ones before it carried along.
#pragma once

#include "gradient.h"

namespace DML_ISA {

class Boosted {
 public:
  Boosted(const dml_pairs& p, const dml_boosting& b, bool want)
      : p_(p), b_(b), want_(want), schedule_(p.n, p.n, true), threads_(schedule_.workers(p.threads)) {
    order_ = order_by_label(p.row_labels, p.n);
    Side ranks{p.rows, p.n, p.d, order_};
    rank_labels(ranks, p.row_labels, nullptr, nullptr);
    label_ = std::move(ranks.label);
    label_.resize(label_.size() + NR, -1);
    share();
    int64_t first = 0;
    for (int64_t m = 0; m < b.learners; first += b.groups[m++])
      learners_.emplace_back(new Learner(*this, m, first));
    for (const auto& learner : learners_) finite_ &= learner->finite;
  }

  bool finite() const { return finite_; }

  // losses (learners,): of each.
  void run(float* losses) {
    const int64_t M = b_.learners;
    std::vector<double> sums(schedule_.size() * M, 0.0);
    std::vector<std::unique_ptr<Work>> works;
    for (int i = 0; i < threads_; i++) works.emplace_back(new Work());
    schedule_.run(threads_, [&](int worker, int64_t index, const Task& task, auto& wait) {
      Work& work = *works[worker];
      for_each_tile(task, [&](const Tile& tile) {
        for (int64_t m = 0; m < M; m++) {
          sums[index * M + m] += weigh(work, tile, m);
          if (!want_) continue;
          if (m == 0) wait();
          Learner& learner = *learners_[m];
          add_weighted_columns(work.weights.data(), tile, learner.side, learner.gradient);
          add_weighted_rows(work.weights.data(), tile, learner.side, learner.gradient);
        }
      });
    });
    for (int64_t m = 0; m < M; m++) {
      double sum = 0;
      for (int64_t k = 0; k < schedule_.size(); k++) sum += sums[k * M + m];
      losses[m] = float(sum);
    }
  }

  // d_rows (n, d): through the norms of each learner.
  void write(float* d_rows) const {
    for (const auto& learner : learners_)
      parallel_for(threads_, p_.n, [&](int64_t i) { learner->write(i, d_rows + order_[i] * p_.d); });
  }

 private:
  static constexpr int64_t rows_of_sum = 8;  // whose losses are added up in float32
  static constexpr float shortest = 1e-5f;   // norm by which a row is divided at least

  // A group of columns: its rows at length 1, and their gradient.
  struct Learner {
    int64_t first;
    Side side;
    std::vector<float> inverse;  // of the norm, by position
    Gradient gradient;
    bool finite = true;

    Learner(const Boosted& all, int64_t m, int64_t first) : first(first), inverse(all.p_.n) {
      side.n = all.p_.n;
      side.d = all.b_.groups[m];
      side.packed = Buffer<float>(side.panels() * side.d * VL);
      if (all.want_) side.spread = Buffer<float>(side.d_panels() * side.spread_stride());
      auto row = [&](int64_t i) { return all.p_.rows + all.order_[i] * all.p_.d + first; };
      std::atomic<bool> each{true};
      parallel_for(all.threads_, side.n, [&](int64_t i) {
        double squared = 0;  // of floats, which it has room for
        for (int64_t k = 0; k < side.d; k++) squared += double(row(i)[k]) * row(i)[k];
        if (!std::isfinite(squared)) each.store(false, std::memory_order_relaxed);
        inverse[i] = float(1 / std::max(std::sqrt(squared), double(shortest)));
      });
      finite = each;
      parallel_for(all.threads_, side.panels(), [&](int64_t p) {
        pack_panel(
            side, p,
            [&](int64_t i, int64_t k, int64_t width) { return load_first(row(i) + k, width) * inverse[i]; },
            [](vf) {});
      });
      if (!all.want_) return;
      gradient.sum = Buffer<float>(side.d_panels() * side.spread_stride());
      gradient.sum.fill(0);
    }

    // What is at right angles to the row, over its norm; all of it where the norm is too short to count.
    void write(int64_t i, float* out) const {
      const float* g = gradient.sum.data() + i * VL;
      const float* x = side.spread.data() + i * VL;
      const int64_t stride = side.spread_stride();
      float along = 0;
      if (inverse[i] < 1 / shortest) {
        vf sum = {};
        for (int64_t q = 0; q < side.d_panels(); q++) sum += load(g + q * stride) * load(x + q * stride);
        along = hsum(sum);
      }
      for (int64_t q = 0; q < side.d_panels(); q++) {
        const int64_t k = q * VL, width = std::min<int64_t>(VL, side.d - k);
        store_first(out + first + k, (load(g + q * stride) - load(x + q * stride) * along) * inverse[i],
                    width);
      }
    }
  };

  // What a worker needs for a tile.
  struct Work {
    Buffer<float> scores = Buffer<float>((Schedule::tile + MR) * NR);
    Buffer<float> weights = Buffer<float>(tile_floats);
    Buffer<float> carry = Buffer<float>(tile_floats);
  };

  // A pair is walked once and counts twice.
  void share() {
    double same = 0;
    const int64_t n = p_.n;
    for (int64_t i = 0, j; i < n; i = j) {
      for (j = i; j < n && label_[j] == label_[i]; j++) {
      }
      same += double(j - i) * double(j - i);
    }
    const double different = double(n) * double(n) - same;
    positive_ = float(2 / (std::max(same, 1.0) * double(b_.learners)));
    negative_ = float(2 / (std::max(different, 1.0) * double(b_.learners)));
  }

  template <class F>
  void for_each_tile(const Task& task, F&& f) const {
    const Range rows = schedule_.rows(task), columns = schedule_.columns(task);
    const bool diagonal = task.row_block == task.column_block;
    for (int64_t j = columns.begin; j < columns.end; j += Schedule::tile)
      for (int64_t i = rows.begin; i < (diagonal ? j + 1 : rows.end); i += Schedule::tile)
        f(Tile{{i, std::min(rows.end, i + Schedule::tile)},
               {j, std::min(columns.end, j + Schedule::tile)},
               diagonal && i == j});
  }

  // The weights of a tile for learner m, what it carries on, and its loss.
  double weigh(Work& work, const Tile& tile, int64_t m) const {
    const auto with = [&](auto base, auto boosting) { return weigh_as<base, boosting>(work, tile, m); };
    using std::integral_constant;
    const auto boosted = [&](auto base) {
      switch (b_.boosting) {
        case DML_ETA:
          return with(base, integral_constant<int, DML_ETA>());
        case DML_ADDITIVE:
          return with(base, integral_constant<int, DML_ADDITIVE>());
        case DML_DERIVATIVE:
          return with(base, integral_constant<int, DML_DERIVATIVE>());
        default:
          return with(base, integral_constant<int, DML_UNBOOSTED>());
      }
    };
    if (b_.base == DML_DEVIANCE) return boosted(integral_constant<int, DML_DEVIANCE>());
    return boosted(integral_constant<int, DML_CONTRASTIVE>());
  }

  template <int BASE, int BOOSTING>
  double weigh_as(Work& work, const Tile& tile, int64_t m) const {
    const Side& side = learners_[m]->side;
    double total = 0;
    for_each_strip(tile, [&](const Strip& strip) {
      const Range range = strip.rows();
      strip_products(side, range, side, strip, work.scores.data());
      float* weights = work.weights.data() + strip.column();
      float* carry = work.carry.data() + strip.column();
      vf sum = {};
      for (int64_t i = range.begin; i < range.end; i++) {
        const int64_t row = (i - tile.rows.begin) * tile_stride;
        const float* scores = work.scores.data() + (i - range.begin) * NR;
        for (int v = 0; v < strip.vectors; v++)
          sum += weigh_pairs<BASE, BOOSTING>(m, i, strip.begin + v * VL, tile.upper, load(scores + v * VL),
                                             carry + row + v * VL, weights + row + v * VL);
        if (i % rows_of_sum != rows_of_sum - 1) continue;
        total += hsum(sum);
        sum = vf{};
      }
      total += hsum(sum);
    });
    return total;
  }

  // Of row i with the columns from j on: writes dloss / dscore and the carry, and gives the losses.
  template <int BASE, int BOOSTING>
  vf weigh_pairs(int64_t m, int64_t i, int64_t j, bool upper, vf score, float* carry, float* weight) const {
    const vi column = lane_index() + int32_t(j - i);
    const vi counts =
        (column < int32_t(p_.n - i)) & (column > (upper ? 0 : std::numeric_limits<int32_t>::min()));
    const vi same = load(label_.data() + j) == label_[i];
    const vf sign = select(same, splat(1.0f), splat(-b_.negative_cost));
    const vf slope = sign * b_.beta1, z = slope * (score - b_.beta2);
    const float eta = 2.0f / float(m + 2);

    const vf before = m ? load(carry) : splat(BOOSTING == DML_ADDITIVE ? additive_start : 0.0f);
    vf pair = keep(counts, select(same, splat(positive_), splat(negative_)));
    if (m) pair *= boost<BASE, BOOSTING>(before, same, slope);
    const vf carried = BOOSTING == DML_ADDITIVE                      ? z * additive_share
                       : BASE == DML_DEVIANCE && BOOSTING == DML_ETA ? (z - before) * eta
                                                                     : (score - before) * eta;
    if (BOOSTING != DML_UNBOOSTED) store(carry, before + carried);

    if (BASE == DML_CONTRASTIVE) {
      const vf short_of = select(same, score - 1.0f, max(vf{}, score - b_.margin));
      store(weight, pair * short_of * 2.0f);
      return pair * short_of * short_of;
    }
    const vf e = exp(-max(z, -z)), share = 1.0f / (e + 1.0f);
    store(weight, -(pair * slope * select(z > 0.0f, e * share, share)));  // sigmoid(-z)
    return pair * (max(vf{}, -z) + log1p(e));                             // softplus(-z)
  }

  // What a pair weighs for the next learner by what was carried.
  template <int BASE, int BOOSTING>
  vf boost(vf carried, vi same, vf slope) const {
    if (BOOSTING == DML_UNBOOSTED) return splat(1.0f);
    if (BASE == DML_CONTRASTIVE) return select(same, 1.0f - carried, max(vf{}, carried - b_.margin)) * 2.0f;
    if (BOOSTING == DML_ETA) return sigmoid(-carried);
    if (BOOSTING == DML_ADDITIVE)
      return sigmoid(-carried) * select(same, splat(1.0f), splat(additive_negatives));
    return max(slope, -slope) * sigmoid(-slope * (carried - b_.beta2));
  }

  static vf sigmoid(vf x) {
    const vf e = exp(-max(x, -x)), share = 1.0f / (e + 1.0f);
    return select(x < 0.0f, e * share, share);
  }

  static constexpr float additive_start = 0.5f, additive_share = 0.06f, additive_negatives = 2.0f;

  const dml_pairs p_;
  const dml_boosting b_;
  const bool want_;
  const Schedule schedule_;
  const int threads_;
  Order order_;
  std::vector<int32_t> label_;  // dense rank by position, padded by a strip with -1
  std::vector<std::unique_ptr<Learner>> learners_;
  float positive_ = 0, negative_ = 0;  // what a pair weighs before boosting
  bool finite_ = true;
};

}  // namespace DML_ISA
