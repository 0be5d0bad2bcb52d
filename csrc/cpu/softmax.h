// Softmax over the cosines of rows with classes: log-sum-exps, and gradients through both normalisations.
#pragma once

#include <atomic>
#include <numeric>

#include "gradient.h"

namespace DML_ISA {

// 1 / |x_i| by row, 0 for a row of zeros, or one shorter than any normal float.
struct Lengths {
  Buffer<float> inverse;
  bool finite = true;

  Lengths(const float* x, int64_t n, int64_t d, int threads) : inverse(n) {
    std::atomic<bool> all{true};
    parallel_for(threads, n, [&](int64_t i) {
      const double squared = squared_length(x + i * d, d);
      if (!std::isfinite(squared)) all.store(false, std::memory_order_relaxed);
      const double length = std::sqrt(squared);
      inverse[i] = length >= std::numeric_limits<float>::min() ? float(1 / length) : 0.0f;
    });
    finite = all;
  }

 private:
  // Of floats, for whose squares there is room in doubles. Several sums, for instructions on several numbers.
  static double squared_length(const float* x, int64_t d) {
    constexpr int parts = 16;
    double sums[parts] = {};
    int64_t k = 0;
    for (; k + parts <= d; k += parts)
      for (int j = 0; j < parts; j++) sums[j] += double(x[k + j]) * x[k + j];
    for (; k < d; k++) sums[0] += double(x[k]) * x[k];
    return std::accumulate(sums, sums + parts, 0.0);
  }
};

// Some rows [begin, begin + side.n) of a matrix at length 1.
struct Units {
  Side side;
  const float *x, *inverse;
  int64_t begin = 0;

  Units(const float* x, const Lengths& lengths, int64_t most, int64_t d, bool packed, bool spread)
      : x(x), inverse(lengths.inverse.data()) {
    side.n = most;
    side.d = d;
    if (packed) side.packed = Buffer<float>(side.panels() * d * VL);
    if (spread) side.spread = Buffer<float>(side.d_panels() * side.spread_stride());
  }

  void pack(Range rows, int threads) {
    begin = rows.begin;
    side.n = rows.size();
    parallel_for(threads, side.panels(), [&](int64_t p) {
      pack_panel(
          side, p,
          [&](int64_t i, int64_t k, int64_t width) {
            return load_first(x + (begin + i) * side.d + k, width) * inverse[begin + i];
          },
          [](vf) {});
    });
  }

  // Writes, or adds, the gradient of row i of the matrix from that of the row at length 1: what is at right
  // angles to it, over its length.
  void write_gradient(int64_t i, const float* gradient, int64_t stride, bool add, float* out) const {
    vf along = {};
    for (int64_t q = 0; q < side.d_panels(); q++)
      along +=
          load(gradient + q * stride + i * VL) * load(side.spread.data() + q * side.spread_stride() + i * VL);
    const float component = hsum(along), over_length = inverse[begin + i];
    out += (begin + i) * side.d;
    for (int64_t q = 0; q < side.d_panels(); q++) {
      const int64_t k = q * VL, width = std::min<int64_t>(VL, side.d - k);
      const vf unit = load(side.spread.data() + q * side.spread_stride() + i * VL);
      const vf value = (load(gradient + q * stride + i * VL) - unit * component) * over_length;
      store_first(out + k, add ? load_first(out + k, width) + value : value, width);
    }
  }
};

class Softmax {
 public:
  Softmax(const dml_classes& p, float scale, int64_t scratch_bytes, bool want_rows, bool want_weight)
      : p_(p),
        scale_(scale),
        want_rows_(want_rows),
        want_weight_(want_weight),
        running_(!(2 * scale <= safe_span)),
        row_lengths_(p.rows, p.n, p.d, p.threads),
        class_lengths_(p.weight, p.c, p.d, p.threads),
        block_(std::clamp(round_up(p.c / fewest_blocks, narrowest), narrowest, Schedule::tile)),
        blocks_((p.c + block_ - 1) / block_) {
    in_groups(block_ / VL, [&](auto, int64_t) { strips_++; });
    const int64_t row_bytes = blocks_ * strips_ * NR * int64_t(sizeof(float));
    const int64_t fitting = scratch_bytes / row_bytes / VL * VL;
    kept_ = with_gradient() && fitting >= std::min(fewest_kept, round_up(p.n, VL));
    const int64_t most = kept_ ? std::min(fitting, most_rows) : most_rows;
    const int64_t chunks = round_up(p.n, most) / most;
    height_ = round_up(round_up(p.n, chunks) / chunks, VL);
    const int64_t lane_bytes = height_ * (p.d + 4) * int64_t(sizeof(float));
    lanes_ = std::clamp<int64_t>(lanes_bytes / lane_bytes, 1, std::min(most_lanes, blocks_));
  }

  bool finite() const { return row_lengths_.finite && class_lengths_.finite; }

  // logsumexp (n,): of scale * cosine over all classes but the row's own. The gradients are those of the sum
  // over the rows of row_weight * softplus(logsumexp - target).
  void run(const float* target, const float* row_weight, float* logsumexp, float* d_rows, float* d_weight) {
    Units rows(p_.rows, row_lengths_, height_, p_.d, true, with_gradient());
    std::vector<std::unique_ptr<Work>> works;
    for (int64_t k = 0; k < std::min<int64_t>(p_.threads, lanes_); k++)
      works.emplace_back(new Work(p_, class_lengths_, block_, with_gradient()));
    std::vector<Lane> lanes(lanes_);
    if (kept_) scores_ = Buffer<float>(blocks_ * strips_ * NR * height_);
    for (int64_t first = 0; first < p_.n; first += height_) {
      rows.pack({first, std::min(p_.n, first + height_)}, p_.threads);
      find_own(rows);
      in_lanes(works, lanes, [&](Work& work, Lane& lane, Range blocks) { reduce(work, lane, blocks, rows); });
      for (int64_t i = 0; i < rows.side.n; i++)
        logsumexp[first + i] = combine(lanes, i, p_.c > (p_.labels[first + i] < 0 ? 0 : 1));
      if (!with_gradient()) continue;
      statistic_.assign(logsumexp + first, logsumexp + first + rows.side.n);
      factor_.resize(rows.side.n);
      for (int64_t i = 0; i < rows.side.n; i++)
        factor_[i] = scale_ * row_weight[first + i] * sigmoid(statistic_[i] - target[first + i]);
      in_lanes(works, lanes, [&](Work& work, Lane& lane, Range blocks) {
        weigh(work, lane, blocks, rows, first > 0, d_weight);
      });
      if (d_rows) write_rows(lanes, rows, d_rows);
    }
  }

 private:
  static constexpr int64_t narrowest =
      64;  // block of classes: each lane has a gradient of all rows to add up
  static constexpr int64_t fewest_blocks = 8;  // that classes are cut into, as far as blocks are not narrower
  static constexpr int64_t fewest_kept = 64;   // rows of a chunk below which cosines are not kept
  static constexpr int64_t most_rows = 1024;   // of a chunk
  static constexpr int64_t most_lanes = 32;    // how many threads there can be work for
  static constexpr int64_t lanes_bytes = 32 << 20;

  // What a worker needs for a block of classes against a tile of rows.
  struct Work {
    Units classes;
    Buffer<float> scores = Buffer<float>((Schedule::tile + MR) * NR);
    Buffer<float> weights = Buffer<float>(tile_floats);
    Gradient gradient;

    Work(const dml_classes& p, const Lengths& lengths, int64_t block, bool with_gradient)
        : classes(p.weight, lengths, std::min(p.c, block), p.d, true, with_gradient) {
      if (with_gradient) gradient.sum = Buffer<float>(classes.side.d_panels() * block * VL);
    }
  };

  // A share of the blocks, walked in order by one worker, and what it adds up for each row of the chunk. The
  // lanes are combined in order, so that the sums do not depend on the number of threads.
  struct Lane {
    std::vector<float> top;
    std::vector<double> sum;
    Gradient gradient;
  };

  bool with_gradient() const { return want_rows_ || want_weight_; }

  template <class F>
  void in_lanes(std::vector<std::unique_ptr<Work>>& works, std::vector<Lane>& lanes, F&& f) {
    std::atomic<int64_t> next{0};
    on_each_thread(int(works.size()), [&](int worker) {
      for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < lanes_;)
        f(*works[worker], lanes[k], Range{blocks_ * k / lanes_, blocks_ * (k + 1) / lanes_});
    });
  }

  Range classes_of(int64_t block) const { return {block * block_, std::min(p_.c, (block + 1) * block_)}; }

  // Calls f(tile, index) for the tiles of the rows with a block of classes.
  template <class F>
  void for_each_tile(const Units& rows, const Units& classes, F&& f) const {
    for (int64_t i = 0; i < rows.side.n; i += Schedule::tile)
      f(Tile{{i, std::min(rows.side.n, i + Schedule::tile)}, {0, classes.side.n}, false});
  }

  // The rows of the chunk by the class that is their own.
  void find_own(const Units& rows) {
    own_.clear();
    for (int64_t i = 0; i < rows.side.n; i++) own_.push_back({p_.labels[rows.begin + i], i});
    std::sort(own_.begin(), own_.end());
  }
  // Calls f(i, class) for the rows of a tile whose own class is one of [classes.begin, classes.end).
  template <class F>
  void for_each_own(const Tile& tile, Range classes, F&& f) const {
    auto at = std::lower_bound(own_.begin(), own_.end(), std::pair<int64_t, int64_t>{classes.begin, 0});
    for (; at != own_.end() && at->first < classes.end; ++at)
      if (at->second >= tile.rows.begin && at->second < tile.rows.end) f(at->second, at->first);
  }

  // Where the cosines of a strip are kept, or are put for the moment.
  float* scores_of(Work& work, int64_t block, const Strip& strip) {
    if (!kept_) return work.scores.data();
    return scores_.data() + ((block * strips_ + strip.index) * height_ + strip.tile.rows.begin) * NR;
  }

  // The cosines of a strip with the rows of its tile, row by row; -inf for a row's own class and past the
  // end.
  void find_scores(const Units& rows, const Units& classes, const Strip& strip, float* out) const {
    strip_products(rows.side, strip.tile.rows, classes.side, strip, out);
    const Range range{classes.begin + strip.begin, classes.begin + std::min(strip.end(), classes.side.n)};
    for_each_own(strip.tile, range, [&](int64_t i, int64_t c) {
      out[(i - strip.tile.rows.begin) * NR + c - range.begin] = minus_infinity;
    });
    for (int64_t j = range.size(); j < strip.vectors * VL; j++)
      for (int64_t i = 0; i < strip.tile.rows.size(); i++) out[i * NR + j] = minus_infinity;
  }

  void reduce(Work& work, Lane& lane, Range blocks, const Units& rows) {
    lane.top.assign(rows.side.n, running_ ? -2 * scale_ : scale_);
    lane.sum.assign(rows.side.n, 0.0);
    for (int64_t block = blocks.begin; block < blocks.end; block++) {
      work.classes.pack(classes_of(block), 1);
      for_each_tile(rows, work.classes, [&](const Tile& tile) {
        float sums[Schedule::tile][VL];
        std::fill_n(sums[0], tile.rows.size() * VL, 0.0f);
        for_each_strip(tile, [&](const Strip& strip) {
          float* scores = scores_of(work, block, strip);
          find_scores(rows, work.classes, strip, scores);
          for (int64_t i = 0; i < tile.rows.size(); i++)
            add(lane, tile.rows.begin + i, scores + i * NR, strip.vectors, sums[i]);
        });
        for (int64_t i = 0; i < tile.rows.size(); i++) lane.sum[tile.rows.begin + i] += hsum(load(sums[i]));
      });
    }
  }

  // Adds a strip's exponentials of a row. A new top scales what was added before.
  void add(Lane& lane, int64_t i, const float* scores, int vectors, float* sums) const {
    float& top = lane.top[i];
    if (running_) {
      vf largest = load(scores);
      for (int v = 1; v < vectors; v++) largest = max(largest, load(scores + v * VL));
      const float found = hmax(largest) * scale_;
      if (found > top) {
        const float shrink = std::exp(top - found);
        store(sums, load(sums) * shrink);
        lane.sum[i] *= shrink;
        top = found;
      }
    }
    vf sum = load(sums);
    for (int v = 0; v < vectors; v++) sum += exp(load(scores + v * VL) * scale_ - top);
    store(sums, sum);
  }

  // Row i's log-sum-exp over all lanes; -inf where no class is another's.
  static float combine(const std::vector<Lane>& lanes, int64_t i, bool some) {
    Statistic all(1, minus_infinity);
    for (const Lane& lane : lanes) all.add(0, lane.top[i], lane.sum[i]);
    return some ? all.logsumexp(0) : minus_infinity;
  }

  static float sigmoid(float x) { return float(1 / (1 + std::exp(-double(x)))); }

  // Weights of the pairs, and what they give to rows, in the lane, and to classes, which are the lane's
  // alone.
  void weigh(Work& work, Lane& lane, Range blocks, const Units& rows, bool add, float* d_weight) {
    if (want_rows_) {
      lane.gradient.sum = Buffer<float>(rows.side.d_panels() * rows.side.spread_stride());
      lane.gradient.sum.fill(0);
    }
    for (int64_t block = blocks.begin; block < blocks.end; block++) {
      work.classes.pack(classes_of(block), 1);
      if (want_weight_) work.gradient.sum.fill(0);
      for_each_tile(rows, work.classes, [&](const Tile& tile) {
        for_each_strip(tile, [&](const Strip& strip) {
          float* scores = scores_of(work, block, strip);
          if (!kept_) find_scores(rows, work.classes, strip, scores);
          for (int64_t i = 0; i < tile.rows.size(); i++) {
            const float factor = factor_[tile.rows.begin + i], statistic = statistic_[tile.rows.begin + i];
            float* out = work.weights.data() + i * tile_stride + strip.begin;
            for (int v = 0; v < strip.vectors; v++)
              store(out + v * VL, exp(load(scores + i * NR + v * VL) * scale_ - statistic) * factor);
          }
        });
        for_each_own(tile, classes_of(block), [&](int64_t i, int64_t c) {
          work.weights[(i - tile.rows.begin) * tile_stride + c - work.classes.begin] = 0.0f;
        });
        if (want_rows_) add_weighted_columns(work.weights.data(), tile, work.classes.side, lane.gradient);
        if (want_weight_) add_weighted_rows(work.weights.data(), tile, rows.side, work.gradient);
      });
      const int64_t stride = work.gradient.sum.size() / work.classes.side.d_panels();
      for (int64_t j = 0; j < work.classes.side.n && want_weight_; j++)
        work.classes.write_gradient(j, work.gradient.sum.data(), stride, add, d_weight);
    }
  }

  void write_rows(const std::vector<Lane>& lanes, const Units& rows, float* d_rows) const {
    const int64_t size = lanes[0].gradient.sum.size(), stride = rows.side.spread_stride();
    Buffer<float> total(size);
    parallel_for(p_.threads, size / VL, [&](int64_t k) {
      vf sum = {};
      for (const Lane& lane : lanes) sum += load(lane.gradient.sum.data() + k * VL);
      store(total.data() + k * VL, sum);
    });
    parallel_for(p_.threads, rows.side.n,
                 [&](int64_t i) { rows.write_gradient(i, total.data(), stride, false, d_rows); });
  }

  const dml_classes p_;
  const float scale_;
  const bool want_rows_, want_weight_, running_;
  const Lengths row_lengths_, class_lengths_;
  const int64_t block_, blocks_;  // the classes of a block, and how many blocks there are
  int64_t strips_ = 0, height_ = 0, lanes_ = 0;
  bool kept_ = false;
  Buffer<float> scores_;                          // [block][strip][row of the chunk][NR] where they are kept
  std::vector<std::pair<int64_t, int64_t>> own_;  // (class, row of the chunk), in order
  std::vector<float> statistic_, factor_;         // by row of the chunk
};

}  // namespace DML_ISA
