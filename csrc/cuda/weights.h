// The weights of the pairs of a warp's rows, tile after tile.
#pragma once

#include "stream.h"

namespace dml {

// How pairs are weighed, and which of them are too near for a product.
struct Weights {
  Weigher weigh;
  const float* middle;  // and whether statistics span too much for one exponential a pair
  float near;
};

// 16 rows of a band, two of a thread. HAS_ROOM: registers hold what columns have while products are made.
template <bool HAS_ROOM>
class RowWeights {
 public:
  __device__ __forceinline__ RowWeights(const Pairs& pairs, const Weights& weights, int band)
      : pairs_(pairs),
        w_(weights),
        first_(band * BAND + warp_of() * WARP_ROWS),
        rows_{Row(pairs.x, first_ + row_of(0)), Row(pairs.x, first_ + row_of(2))},
        span_(pairs.x, first_, WARP_ROWS),
        plain_(!pairs.has_bias() && (!is_exponential() || weights.middle[1] == 0.0f)),
        of_columns_(factors_of(weights.weigh.rs)) {
    const float* const of_rows = factors_of(weights.weigh.xs);
    for (int h = 0; h < 2; h++) factor_[h] = of_rows ? of_rows[rows_[h].position] : 0.0f;
  }

  __device__ __forceinline__ const Row& row(int h) const { return rows_[h]; }

  // What the columns of a tile have, before its scores are weighed.
  __device__ __forceinline__ void load(int tile) {
    norms_ = OfColumns(pairs_.r.norm, tile);
    if constexpr (HAS_ROOM) factors_ = OfColumns(of_columns_, tile);
  }

  // Turns the scores of the tile that was loaded into weights. Returns which pairs are near.
  __device__ __forceinline__ uint32_t weigh(Scores& scores, int tile) {
    const bool close = is_distance() && to_squared_distances(scores, norms_, pairs_, rows_, tile);
    if constexpr (!HAS_ROOM) factors_ = OfColumns(of_columns_, tile);
    if (!plain_ || close || !takes_all(pairs_, span_, first_, tile)) return weigh_some(scores, close, tile);
    if (is_exponential())
      is_distance() ? weigh_all<true, true>(scores) : weigh_all<false, true>(scores);
    else
      is_distance() ? weigh_all<true, false>(scores) : weigh_all<false, false>(scores);
    return 0;
  }

  // Calls f(i, j, weight) in the whole warp for one near pair of a tile after another that weighs something,
  // and takes its weight away.
  template <class F>
  __device__ __forceinline__ void take_near(Scores& weights, uint32_t near, int tile, const F& f) const {
    each_in_turn(near, rows_, tile, [&](int lane, int pair, int i, int j) {
      float weight = lane == lane_of() ? exchange(weights, pair, 0.0f) : 0.0f;
      weight = __shfl_sync(ALL_LANES, weight, lane);
      if (weight != 0.0f) f(i, j, weight);
    });
  }

  // Rounds weights as they enter a product with columns, and adds them up.
  template <class T>
  __device__ __forceinline__ void add(Scores& weights) {
    round_weights<T>(weights, pairs_.task.fast);
    float of_tile[2] = {};  // a sum of sums: thousands of weights, one after another, would lose digits
    each_score([&](int f, int e) { of_tile[e / 2] += weights[f][e]; });
    for (int h = 0; h < 2; h++) sums_[h] += of_tile[h];
  }

  // The sum of what was added for a row.
  __device__ __forceinline__ float sum(int h) const { return over_row(sums_[h]); }

 private:
  __device__ __forceinline__ bool is_distance() const { return pairs_.task.score == DML_DISTANCE; }
  __device__ __forceinline__ bool is_exponential() const { return pairs_.task.reduce == DML_LOGSUMEXP; }

  // What one exponential is multiplied by.
  __device__ __forceinline__ const float* factors_of(const dml_stats& stats) const {
    if (!stats.grad) return nullptr;
    return pairs_.task.reduce == DML_SUM ? stats.grad : stats.factor;
  }

  // Turns scores, all of which are selected and none close, into weights.
  template <bool DISTANCE, bool EXPONENTIAL>
  __device__ __forceinline__ void weigh_all(Scores& scores) const {
    const float scale = pairs_.task.scale;
    const float shift = EXPONENTIAL ? pairs_.task.offset - w_.middle[0] : 0.0f;
    each_score([&](int f, int e) {
      float weight = factor_[e / 2] + factors_(f, e), score = scores[f][e], inverse = 1.0f;
      if constexpr (DISTANCE) inverse = reciprocal_sqrt(score), score *= inverse;
      if constexpr (EXPONENTIAL) weight *= exp2(score * scale + shift);
      scores[f][e] = weight * inverse;
    });
  }

  // The same for scores of which some are selected, and for statistics of any span; returns which pairs are
  // near.
  __device__ __forceinline__ uint32_t weigh_some(Scores& scores, bool close, int tile) const {
    uint32_t near = 0;
#pragma unroll 1
    for (int f = 0; f < FRAGMENTS; f++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int j = tile * TILE + column_of(f, e);
        float score = scores[0][e], inverse = 1.0f;
        if (is_distance()) {
          if (close && is_near(score, rows_[e / 2], j)) near |= 1u << (f * 4 + e);
          inverse = score > TINY ? reciprocal_sqrt(score) : 0.0f;
          score *= inverse;
        }
        scores[0][e] = w_.weigh(score, pairs_, rows_[e / 2], j) * inverse;
      }
      rotate(scores);
    }
    return near;
  }

  // Brings the next fragment to the front, the first one to the end: registers have no index, and the body
  // above, eight times over, would push the shorter one out of the instruction cache.
  __device__ __forceinline__ static void rotate(Scores& scores) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float first = scores[0][e];
#pragma unroll
      for (int f = 1; f < FRAGMENTS; f++) scores[f - 1][e] = scores[f][e];
      scores[FRAGMENTS - 1][e] = first;
    }
  }

  __device__ __forceinline__ bool is_near(float squared, const Row& row, int j) const {
    return squared <= (row.norm + pairs_.r.norm[j]) * w_.near && pairs_.exists(row, j);
  }

  const Pairs& pairs_;
  const Weights& w_;
  const int first_;
  const Row rows_[2];
  const Span span_;
  const bool plain_;
  const float* const of_columns_;
  float factor_[2], sums_[2] = {};
  OfColumns norms_, factors_;
};

}  // namespace dml
