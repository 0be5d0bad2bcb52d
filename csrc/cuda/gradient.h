// The gradient of a band of rows: the product of the weights of its pairs with the columns.
#pragma once

#include "weights.h"

namespace dml {

struct Scale {
  float factor;
  const float* share;

  __device__ __forceinline__ float operator()() const { return factor * (share ? *share : 1.0f); }
};

// Tiles whose columns a tensor core adds up before they are added to the rest. The emulation has few.
#ifdef DML_EMULATED
constexpr int RUN = 16;
#else
constexpr int RUN = 1024;
#endif

// Adds to some components of a row what a pair gives, from the difference of its rows.
__device__ __forceinline__ void add_difference(const Pairs& pairs, int i, int j, float weight, int64_t begin,
                                               int64_t end, float* out) {
  const int64_t row = given_row(pairs.x, i), column = given_row(pairs.r, j);
#pragma unroll 1
  for (int64_t k = begin + lane_of(); k < end; k += WARP)
    out[row * pairs.x.given.d + k] +=
        weight * (component(pairs.x.given, row, k) - component(pairs.r.given, column, k));
}

// A band of rows and KEPT chunks of their gradient.
template <class T, int KEPT>
class Gradient {
 public:
  static constexpr int FRAGMENTS_OF_CHUNK = components_of_chunk<T> / 8;

  __device__ __forceinline__ Gradient(const Pairs& pairs, const Weights& weights)
      : pairs_(pairs),
        begin_(int64_t(blockIdx.z) * KEPT * components_of_chunk<T>),
        rows_(pairs, weights, int(blockIdx.x)) {}

  // Adds the weighted columns up, here and in `out`, where what near pairs give is added.
  template <class Columns>
  __device__ __forceinline__ void run(Columns& columns, const Tiles& tiles, float* out) {
    if (tiles.first == tiles.end) return;
    const int64_t end = min(begin_ + KEPT * components_of_chunk<T>, pairs_.x.given.d);
    if constexpr (Columns::HAS_ROOM) rows_.load(tiles.first);
    Scores scores;
    columns.next(scores);
    for (int tile = tiles.first; tile < tiles.end; tile++) {
      if constexpr (!Columns::HAS_ROOM) rows_.load(tile);
      const uint32_t near = rows_.weigh(scores, tile);
      rows_.take_near(scores, near, tile, [&](int i, int j, float weight) {
        add_difference(pairs_, i, j, weight, begin_, end, out);
      });
      rows_.template add<T>(scores);
      if constexpr (Columns::HAS_ROOM) rows_.load(min(tile + 1, tiles.end - 1));
      columns.advance(scores, sums_);
      // the tensor cores add all columns of 16-bit rows up, and truncate: none of their sums may last too
      // long
      if constexpr (sizeof(T) == 2)
        if ((tile - tiles.first) % RUN == RUN - 1) add_sums(out);
    }
  }

  __device__ __forceinline__ void write(float* out, const Scale& scale) {
    const float factor = scale(), poison = poison_of(pairs_.x, pairs_.r);
    const float sum_of_weights[2] = {rows_.sum(0), rows_.sum(1)};
    __syncwarp();  // other threads have added near pairs
    each_component(out, [&](float& all, int h, int64_t k, float sum) {
      const float own = pairs_.task.score == DML_DISTANCE
                            ? sum_of_weights[h] * prepared<T>(pairs_.x, rows_.row(h).position, k) - sum
                            : sum;
      all = factor * (own + all) + poison;
    });
  }

 private:
  // Calls f(out, h, k, sum) for the components k that a thread has of its rows.
  template <class F>
  __device__ __forceinline__ void each_component(float* out, const F& f) {
    const int64_t d = pairs_.x.given.d;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int position = rows_.row(h).position;
      if (position >= pairs_.x.given.n) continue;
      float* const row = out + given_row(pairs_.x, position) * d;
#pragma unroll
      for (int n = 0; n < KEPT * FRAGMENTS_OF_CHUNK; n++) {
#pragma unroll
        for (int e = h * 2; e < h * 2 + 2; e++) {
          const int64_t k = begin_ + column_of(n, e);
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

  const Pairs& pairs_;
  const int64_t begin_;  // the first component that is kept
  RowWeights<true> rows_;
  float sums_[KEPT * FRAGMENTS_OF_CHUNK][4] = {};
};

// In a kernel of its own on sm_90a.
Status gradient_sm90(const Pairs&, const Weights&, const Scale&, float* out, void* stream);

}  // namespace dml
