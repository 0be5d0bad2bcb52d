// The gradient of a band of rows: weights of pairs, and their product with the columns.
#pragma once

#include "stream.h"

namespace dml {

struct Scale {
  float factor;
  const float* share;
};

// How pairs are weighed, and which of them are too near for a product.
struct Weights {
  Weigher weigh;
  const float* middle;  // and whether statistics span too much for one exponential a pair
  float near;
};

// A band of rows and KEPT chunks of their gradient.
template <class T, int KEPT>
class Gradient {
 public:
  static constexpr int FRAGMENTS_OF_CHUNK = components_of_chunk<T> / 8;

  __device__ __forceinline__ Gradient(const Pairs& pairs, const Weights& weights)
      : pairs_(pairs),
        w_(weights),
        band_(blockIdx.x),
        kept_(int(blockIdx.z) * KEPT),
        first_(band_ * BAND + warp_of() * WARP_ROWS),
        rows_{Row(pairs.x, first_ + row_of(0)), Row(pairs.x, first_ + row_of(2))} {}

  // Adds the weighted columns up; what near pairs give is added to `out`.
  template <class Columns>
  __device__ __forceinline__ void run(Columns& columns, const Tiles& tiles, float* out) {
    if (tiles.first == tiles.end) return;
    const Span span(pairs_.x, first_, WARP_ROWS);
    const bool wide = pairs_.task.reduce == DML_LOGSUMEXP && !(w_.middle[1] == 0.0f);
    const float factor[2] = {factor_of(w_.weigh.xs, rows_[0].position),
                             factor_of(w_.weigh.xs, rows_[1].position)};
    Scores scores;
    columns.next(scores);
    for (int tile = tiles.first; tile < tiles.end; tile++) {
      if (pairs_.task.score == DML_DISTANCE) to_squared_distances(scores, pairs_, rows_, tile);
      uint32_t near = 0;
      if (!wide && takes_all(pairs_, span, first_, tile))
        near = weigh_all(scores, tile, factor);
      else
        near = weigh_some(scores, tile);
      add_near(near, tile, out);
      float of_tile[2] = {};  // a sum of sums: thousands of weights, one after another, would lose digits
      each([&](int f, int e) {
        scores[f][e] = rounded_weight<T>(scores[f][e], pairs_.task.fast);
        of_tile[e / 2] += scores[f][e];
      });
      for (int h = 0; h < 2; h++) weight_[h] += of_tile[h];
      columns.advance(scores, sums_);
    }
  }

  __device__ __forceinline__ void write(float* out, const Scale& scale) const {
    const float factor = scale.factor * (scale.share ? *scale.share : 1.0f);
    const float poison = poison_of(pairs_.x, pairs_.r);
    const int64_t d = pairs_.x.given.d;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float weight = weight_[h];
      weight += __shfl_xor_sync(ALL_LANES, weight, 1);
      weight += __shfl_xor_sync(ALL_LANES, weight, 2);
      if (rows_[h].position >= pairs_.x.given.n) continue;
      float* const row = out + given_row(pairs_.x, rows_[h].position) * d;
#pragma unroll
      for (int n = 0; n < KEPT * FRAGMENTS_OF_CHUNK; n++) {
#pragma unroll
        for (int e = h * 2; e < h * 2 + 2; e++) {
          const int64_t k = component_of(n, e);
          if (k >= d) continue;
          const float own =
              pairs_.task.score == DML_DISTANCE ? weight * prepared(h, k) - sums_[n][e] : sums_[n][e];
          row[k] = factor * (own + row[k]) + poison;
        }
      }
    }
  }

 private:
  template <class F>
  __device__ __forceinline__ static void each(const F& f) {
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) f(n, e);
  }

  __device__ __forceinline__ int64_t component_of(int n, int e) const {
    return int64_t(kept_) * components_of_chunk<T> + column_of(n, e);
  }

  __device__ __forceinline__ float prepared(int h, int64_t k) const {
    constexpr int IN_CHUNK = components_of_chunk<T>;
    const int64_t position = rows_[h].position;
    const char* const tile =
        static_cast<const char*>(pairs_.x.rows) + position / TILE * pairs_.x.chunks * TILE_CHUNK;
    return to_float(element<T>(tile + k / IN_CHUNK * TILE_CHUNK, int(position % TILE), int(k % IN_CHUNK)));
  }

  __device__ __forceinline__ float factor_of(const dml_stats& stats, int at) const {
    if (!stats.grad) return 0.0f;
    return pairs_.task.reduce == DML_SUM ? stats.grad[at] : stats.factor[at];
  }

  __device__ __forceinline__ float share_of(float squared) const {
    return squared > 0.0f ? reciprocal_sqrt(squared) : 0.0f;
  }

  // Turns scores, all of which are selected, into weights by one exponential; returns which pairs are near.
  __device__ __forceinline__ uint32_t weigh_all(Scores& scores, int tile, const float (&factor)[2]) const {
    const bool exponential = pairs_.task.reduce == DML_LOGSUMEXP;
    const float middle = exponential ? w_.middle[0] : 0.0f;
    return weigh(scores, tile, [&](float score, int h, int j) {
      const float weight = factor[h] + factor_of(w_.weigh.rs, j);
      return exponential ? weight * exp2(pairs_.term(score, rows_[h].position, j) - middle) : weight;
    });
  }

  // The same for scores of which some are selected, and for statistics of any span.
  __device__ __forceinline__ uint32_t weigh_some(Scores& scores, int tile) const {
    return weigh(scores, tile,
                 [&](float score, int h, int j) { return w_.weigh(score, pairs_, rows_[h], j); });
  }

  template <class WeightOf>
  __device__ __forceinline__ uint32_t weigh(Scores& scores, int tile, const WeightOf& weight_of) const {
    const bool distance = pairs_.task.score == DML_DISTANCE;
    uint32_t near = 0;
    each([&](int f, int e) {
      const int j = tile * TILE + column_of(f, e);
      float score = scores[f][e], inverse = 1.0f;
      if (distance) {
        if (is_near(score, rows_[e / 2], j)) near |= 1u << (f * 4 + e);
        inverse = share_of(score);
        score *= inverse;
      }
      const float weight = weight_of(score, e / 2, j) * inverse;
      scores[f][e] = near >> (f * 4 + e) & 1 ? 0.0f : weight;
    });
    return near;
  }

  __device__ __forceinline__ bool is_near(float squared, const Row& row, int j) const {
    return squared <= (row.norm + pairs_.r.norm[j]) * w_.near && pairs_.exists(row, j);
  }

  // Adds to the rows of `out` what the near pairs of a tile give, each from the difference of its rows.
  __device__ __forceinline__ void add_near(uint32_t near, int tile, float* out) const {
#pragma unroll 1
    while (__any_sync(ALL_LANES, near != 0)) {
      const int bit = near ? lowest_bit(near) : 0, j = tile * TILE + column_of(bit / 4, bit % 4);
      const Row row = bit % 4 < 2 ? rows_[0] : rows_[1];
      float weight = 0.0f;
      if (near) {
        const float squared = squared_difference(pairs_.x, row.position, pairs_.r, j),
                    inverse = share_of(squared);
        weight = w_.weigh(squared * inverse, pairs_, row, j) * inverse;
        near &= near - 1;
      }
#pragma unroll 1
      for (int k = 0; k < 4; k++) {
        const int lane = lane_of() / 4 * 4 + k;
        add_difference(__shfl_sync(ALL_LANES, weight, lane), __shfl_sync(ALL_LANES, row.position, lane),
                       __shfl_sync(ALL_LANES, j, lane), out);
      }
    }
  }

  // A thread has the components that it writes in the end.
  __device__ __forceinline__ void add_difference(float weight, int i, int j, float* out) const {
    if (weight == 0.0f) return;
    const int64_t row = given_row(pairs_.x, i), column = given_row(pairs_.r, j);
#pragma unroll 1
    for (int n = 0; n < KEPT * FRAGMENTS_OF_CHUNK; n++) {
#pragma unroll 1
      for (int e = 0; e < 2; e++) {
        const int64_t k = component_of(n, e);
        if (k >= pairs_.x.given.d) return;
        out[row * pairs_.x.given.d + k] +=
            weight * (component(pairs_.x.given, row, k) - component(pairs_.r.given, column, k));
      }
    }
  }

  const Pairs& pairs_;
  const Weights& w_;
  const int band_, kept_, first_;
  const Row rows_[2];
  float weight_[2] = {};
  float sums_[KEPT * FRAGMENTS_OF_CHUNK][4] = {};
};

// In a kernel of its own on sm_90a.
Status gradient_sm90(const Pairs&, const Weights&, const Scale&, float* out, void* stream);

}  // namespace dml
