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

// Tiles whose columns a tensor core adds up before they are added to the rest. The emulation has few.
#ifdef DML_EMULATED
constexpr int RUN = 16;
#else
constexpr int RUN = 1024;
#endif

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

  // Adds the weighted columns up, here and in `out`, where what near pairs give is added.
  template <class Columns>
  __device__ __forceinline__ void run(Columns& columns, const Tiles& tiles, float* out) {
    if (tiles.first == tiles.end) return;
    const Span span(pairs_.x, first_, WARP_ROWS);
    const bool distance = pairs_.task.score == DML_DISTANCE,
               exponential = pairs_.task.reduce == DML_LOGSUMEXP;
    const bool plain = !pairs_.has_bias() && (!exponential || w_.middle[1] == 0.0f);
    const float* const of_rows = factors_of(w_.weigh.xs);
    const float* const of_columns = factors_of(w_.weigh.rs);
    const float factor[2] = {of_rows ? of_rows[rows_[0].position] : 0.0f,
                             of_rows ? of_rows[rows_[1].position] : 0.0f};
    OfColumns norms, factors;
    const auto load = [&](int tile) {
      norms = OfColumns(pairs_.r.norm, tile);
      factors = OfColumns(of_columns, tile);
    };
    if constexpr (Columns::HAS_ROOM) load(tiles.first);
    Scores scores;
    columns.next(scores);
    for (int tile = tiles.first; tile < tiles.end; tile++) {
      if constexpr (!Columns::HAS_ROOM) load(tile);
      const bool close = distance && to_squared_distances(scores, norms, pairs_, rows_, tile);
      if (plain && !close && takes_all(pairs_, span, first_, tile)) {
        if (exponential)
          distance ? weigh_all<true, true>(scores, factor, factors)
                   : weigh_all<false, true>(scores, factor, factors);
        else
          distance ? weigh_all<true, false>(scores, factor, factors)
                   : weigh_all<false, false>(scores, factor, factors);
      } else {
        const uint32_t near = weigh_some(scores, close, tile);
        if (close) add_near(scores, near, tile, out);
      }
      round_weights<T>(scores, pairs_.task.fast);
      float of_tile[2] = {};  // a sum of sums: thousands of weights, one after another, would lose digits
      each([&](int f, int e) { of_tile[e / 2] += scores[f][e]; });
      for (int h = 0; h < 2; h++) weight_[h] += of_tile[h];
      if constexpr (Columns::HAS_ROOM) load(min(tile + 1, tiles.end - 1));
      columns.advance(scores, sums_);
      // the tensor cores add all columns of 16-bit rows up, and truncate: none of their sums may last too
      // long
      if constexpr (sizeof(T) == 2)
        if ((tile - tiles.first) % RUN == RUN - 1) add_sums(out);
    }
  }

  __device__ __forceinline__ void write(float* out, const Scale& scale) {
    const float factor = scale.factor * (scale.share ? *scale.share : 1.0f);
    const float poison = poison_of(pairs_.x, pairs_.r);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      weight_[h] += __shfl_xor_sync(ALL_LANES, weight_[h], 1);
      weight_[h] += __shfl_xor_sync(ALL_LANES, weight_[h], 2);
    }
    __syncwarp();  // other threads have added near pairs
    each_component(out, [&](float& all, int h, int64_t k, float sum) {
      const float own = pairs_.task.score == DML_DISTANCE ? weight_[h] * prepared(h, k) - sum : sum;
      all = factor * (own + all) + poison;
    });
  }

 private:
  template <class F>
  __device__ __forceinline__ static void each(const F& f) {
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) f(n, e);
  }

  // Calls f(out, h, k, sum) for the components k that a thread has of its rows.
  template <class F>
  __device__ __forceinline__ void each_component(float* out, const F& f) {
    const int64_t d = pairs_.x.given.d;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (rows_[h].position >= pairs_.x.given.n) continue;
      float* const row = out + given_row(pairs_.x, rows_[h].position) * d;
#pragma unroll
      for (int n = 0; n < KEPT * FRAGMENTS_OF_CHUNK; n++) {
#pragma unroll
        for (int e = h * 2; e < h * 2 + 2; e++) {
          const int64_t k = component_of(n, e);
          if (k < d) f(row[k], h, k, sums_[n][e]);
        }
      }
    }
  }

  // Adds what was added up to `out`, where other threads of the warp add near pairs before and after.
  __device__ __forceinline__ void add_sums(float* out) {
    __syncwarp();
    each_component(out, [&](float& all, int, int64_t, float& sum) {
      all += pairs_.task.score == DML_DISTANCE ? -sum : sum;
      sum = 0.0f;
    });
    __syncwarp();
  }

  // The first component of a chunk that is kept.
  __device__ __forceinline__ int64_t component_of_chunk(int c) const {
    return int64_t(kept_ + c) * components_of_chunk<T>;
  }

  __device__ __forceinline__ int64_t component_of(int n, int e) const {
    return component_of_chunk(0) + column_of(n, e);
  }

  __device__ __forceinline__ float prepared(int h, int64_t k) const {
    constexpr int IN_CHUNK = components_of_chunk<T>;
    const int64_t position = rows_[h].position;
    const char* const tile =
        static_cast<const char*>(pairs_.x.rows) + position / TILE * pairs_.x.chunks * TILE_CHUNK;
    return to_float(element<T>(tile + k / IN_CHUNK * TILE_CHUNK, int(position % TILE), int(k % IN_CHUNK)));
  }

  // What one exponential is multiplied by.
  __device__ __forceinline__ const float* factors_of(const dml_stats& stats) const {
    if (!stats.grad) return nullptr;
    return pairs_.task.reduce == DML_SUM ? stats.grad : stats.factor;
  }

  // Turns scores, all of which are selected and none close, into weights.
  template <bool DISTANCE, bool EXPONENTIAL>
  __device__ __forceinline__ void weigh_all(Scores& scores, const float (&factor)[2],
                                            const OfColumns& factors) const {
    const float scale = pairs_.task.scale;
    const float shift = EXPONENTIAL ? pairs_.task.offset - w_.middle[0] : 0.0f;
    each([&](int f, int e) {
      float weight = factor[e / 2] + factors(f, e), score = scores[f][e], inverse = 1.0f;
      if constexpr (DISTANCE) inverse = reciprocal_sqrt(score), score *= inverse;
      if constexpr (EXPONENTIAL) weight *= exp2(score * scale + shift);
      scores[f][e] = weight * inverse;
    });
  }

  // The same for scores of which some are selected, and for statistics of any span; returns which pairs are
  // near.
  __device__ __forceinline__ uint32_t weigh_some(Scores& scores, bool close, int tile) const {
    const bool distance = pairs_.task.score == DML_DISTANCE;
    uint32_t near = 0;
#pragma unroll 1
    for (int f = 0; f < FRAGMENTS; f++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int j = tile * TILE + column_of(f, e);
        float score = scores[0][e], inverse = 1.0f;
        if (distance) {
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

  // Adds to the rows of `out` what the near pairs of a tile give, each from the difference of its rows, and
  // takes their weights away.
  __device__ __forceinline__ void add_near(Scores& weights, uint32_t near, int tile, float* out) const {
    const int64_t d = pairs_.x.given.d, begin = component_of_chunk(0), end = min(component_of_chunk(KEPT), d);
    each_in_turn(near, rows_, tile, [&](int lane, int pair, int i, int j) {
      float weight = lane == lane_of() ? exchange(weights, pair, 0.0f) : 0.0f;
      weight = __shfl_sync(ALL_LANES, weight, lane);
      if (weight == 0.0f) return;
      const int64_t row = given_row(pairs_.x, i), column = given_row(pairs_.r, j);
#pragma unroll 1
      for (int64_t k = begin + lane_of(); k < end; k += WARP)
        out[row * d + k] +=
            weight * (component(pairs_.x.given, row, k) - component(pairs_.r.given, column, k));
    });
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
