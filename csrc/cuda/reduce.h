// What is added up over the columns of each row of a band.
#pragma once

#include "stream.h"

namespace dml {

// The rows of a thread: two of its warp's, whose columns it shares with three other threads.
struct BandRows {
  const int first;
  const Row row[2];

  __device__ __forceinline__ BandRows(const dml_side& x, int band)
      : first(band * BAND + warp_of() * WARP_ROWS),
        row{Row(x, first + row_of(0)), Row(x, first + row_of(2))} {}
};

// Hands scores to visit(scores, tile), tile after tile; distances are not squared.
template <class Columns, class Visit>
__device__ __forceinline__ void each_tile(const Pairs& pairs, Columns& columns, const Tiles& tiles,
                                          const BandRows& rows, const Visit& visit) {
  for (int tile = tiles.first; tile < tiles.end; tile++) {
    Scores scores;
    const OfColumns norms(pairs.r.norm, tile);  // before the products are waited for
    columns.next(scores, true);
    if (pairs.task.score == DML_DISTANCE) {
      to_squared_distances(scores, norms, pairs, rows.row, tile);
#pragma unroll
      for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
        for (int e = 0; e < 4; e++) scores[f][e] = square_root(scores[f][e]);
    }
    visit(scores, tile);
  }
}

// Calls f(score, e, j) for the pairs of a thread, j being the position of a column.
template <class F>
__device__ __forceinline__ void each_pair(Scores& scores, int tile, const F& f) {
#pragma unroll
  for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) f(scores[n][e], e / 2, tile * TILE + column_of(n, e));
}

// Partial statistics exp2(top) total of the rows of a band.
template <class Columns>
__device__ __forceinline__ void reduce_band(const Pairs& pairs, Columns& columns, const Tiles& tiles,
                                            float* tops, float* totals) {
  const BandRows rows(pairs.x, blockIdx.x);
  const Span span(pairs.x, rows.first, WARP_ROWS);
  const bool exponential = pairs.task.reduce == DML_LOGSUMEXP;
  float top[2] = {NOTHING, NOTHING}, total[2] = {};
  each_tile(pairs, columns, tiles, rows, [&](Scores& scores, int tile) {
    if (!pairs.has_bias() && takes_all(pairs, span, rows.first, tile)) {
      const float scale = pairs.task.scale, offset = pairs.task.offset;
      each_pair(scores, tile, [&](float& score, int, int) { score = score * scale + offset; });
    } else {
      const float none = exponential ? -INFINITY : 0.0f;
      each_pair(scores, tile, [&](float& score, int h, int j) {
        const bool taken = pairs.selected(rows.row[h], j);
        score = taken ? pairs.term(score, rows.row[h].position, j) : none;
      });
    }
    if (exponential) {
      float high[2] = {top[0], top[1]};
      each_pair(scores, tile, [&](float& term, int h, int) { high[h] = max(high[h], term); });
      for (int h = 0; h < 2; h++) total[h] *= exp2(top[h] - high[h]), top[h] = high[h];
      each_pair(scores, tile, [&](float& term, int h, int) { term = exp2(term - top[h]); });
    }
    float of_tile[2] = {};
    each_pair(scores, tile, [&](float& term, int h, int) { of_tile[h] += term; });
    for (int h = 0; h < 2; h++) total[h] += of_tile[h];
  });
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float high = max(top[h], __shfl_xor_sync(ALL_LANES, top[h], 1));
    high = max(high, __shfl_xor_sync(ALL_LANES, high, 2));
    const float sum = over_row(exponential ? total[h] * exp2(top[h] - high) : total[h]);
    const int64_t at = int64_t(blockIdx.y) * pairs.x.padded + rows.row[h].position;
    if (lane_of() % 4 == 0) tops[at] = high, totals[at] = sum;
  }
}

// In a kernel of its own on sm_90a.
Status reduce_sm90(const Pairs&, bool far_only, float* tops, float* totals, void* stream);

}  // namespace dml
