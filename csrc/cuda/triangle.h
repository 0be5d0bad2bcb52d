// Log-sum-exps of rows that face themselves: the exponential of a pair serves its row and its column.
//
// Tiles on the diagonal and above it are numbered band by band, and every block has an equal share of them,
// whichever bands these are of. What a group of its warps finds it adds up in slots of its own, (padded,), so
// that the order is fixed. Terms are taken from the highest that there can be, as norms tell; where they
// might lie too far below it the kernels of reduce.h serve.
#pragma once

#include "reduce.h"

namespace dml {

// What terms of a side with itself are at most, and how far they may lie below.
struct Reach {
  float high, span;

  __device__ __forceinline__ Reach(const Pairs& pairs) {
    const float largest = *pairs.x.largest, scale = pairs.task.scale;
    const bool distance = pairs.task.score == DML_DISTANCE;
    const float far = scale * (distance ? 2.0f * square_root(largest) : largest);
    high = pairs.task.offset + (distance ? max(far, 0.0f) : fabsf(far));
    span = fabsf(far) * (distance ? 1.0f : 2.0f);
  }

  __device__ __forceinline__ bool is_short() const { return span < 100.0f; }
};

struct Triangle {
  int tiles;           // of a row
  int64_t first, end;  // those of the block

  __device__ __forceinline__ Triangle(const Pairs& pairs) : tiles(tiles_of(pairs.x)) {
    int64_t all = 0;
    for (int diagonal = 0; diagonal < tiles; diagonal += PER_BAND) all += tiles - diagonal;
    first = all * blockIdx.x / gridDim.x;
    end = all * (blockIdx.x + 1) / gridDim.x;
  }

  // Calls f(band, tiles) for the tiles of each band.
  template <class F>
  __device__ __forceinline__ void each_run(const F& f) const {
    int64_t begin = 0;
    for (int diagonal = 0; begin < end; diagonal += PER_BAND) {
      const int64_t low = max(first - begin, int64_t(0)), count = tiles - diagonal,
                    high = min(end - begin, count);
      if (low < high) f(diagonal / PER_BAND, Tiles(diagonal + int(low), diagonal + int(high)));
      begin += count;
    }
  }

  static constexpr int PER_BAND = BAND / TILE;
};

// Sums of the columns of a tile over the rows of each of some warps.
template <int COUNT>
using Sums = float[COUNT][TILE];

// Adds up the rows of a warp for each column; a thread keeps the columns 2 lane and 2 lane + 1.
template <int APART = WARP / 2>
__device__ __forceinline__ void over_rows(float (&sums)[FRAGMENTS][2]) {
  constexpr int HALF = APART / 4;
  const bool upper = lane_of() & APART;
#pragma unroll
  for (int f = 0; f < HALF; f++)
#pragma unroll
    for (int c = 0; c < 2; c++) {
      const float given = upper ? sums[f][c] : sums[f + HALF][c];
      const float kept = upper ? sums[f + HALF][c] : sums[f][c];
      sums[f][c] = kept + __shfl_xor_sync(ALL_LANES, given, APART);
    }
  if constexpr (HALF > 1) over_rows<APART / 2>(sums);
}

// Adds to the sums of the columns of a tile, `before`, those of its values; a thread keeps one of them. The
// warps of the group meet once: before they are here again the next tile has brought them together.
template <int COUNT, class Meet>
__device__ __forceinline__ void add_columns(const Scores& values, float before, Sums<COUNT>& columns,
                                            float* of_column, const Meet& meet) {
  const int warp = warp_of() % COUNT, thread = warp * WARP + lane_of();
  float sums[FRAGMENTS][2];
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int c = 0; c < 2; c++) sums[f][c] = values[f][c] + values[f][c + 2];
  over_rows(sums);
  for (int c = 0; c < 2; c++) columns[warp][2 * lane_of() + c] = sums[0][c];
  meet();
  if (thread < TILE) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < COUNT; w++) sum += columns[w][thread];
    *of_column = before + sum;
  }
}

// Adds to a slot what the pairs of a band with some tiles are for their rows, and for their columns.
template <int COUNT, class Columns, class Meet>
__device__ __forceinline__ void add_run(const Pairs& pairs, Columns& columns, int band, const Tiles& tiles,
                                        float high, Sums<COUNT>& sums, float* slot, const Meet& meet) {
  const BandRows rows(pairs.x, band);
  const Span span(pairs.x, rows.first, WARP_ROWS);
  const float scale = pairs.task.scale, shift = pairs.task.offset - high;  // a bias has no triangle
  const int thread = warp_of() % COUNT * WARP + lane_of();
  float total[2] = {};
  each_tile(pairs, columns, tiles, rows, [&](Scores& scores, int tile) {
    const bool by_columns = tile >= (band + 1) * Triangle::PER_BAND;
    float* const of_column = slot + tile * TILE + thread;
    // comes while exponentials are taken
    const float before = by_columns && thread < TILE ? *of_column : 0.0f;
    if (takes_all(pairs, span, rows.first, tile)) {
      each_pair(scores, tile, [&](float& score, int, int) { score = exp2(score * scale + shift); });
    } else {
      each_pair(scores, tile, [&](float& score, int h, int j) {
        score = pairs.selected(rows.row[h], j) ? exp2(score * scale + shift) : 0.0f;
      });
    }
    float of_tile[2] = {};
    each_pair(scores, tile, [&](float& score, int h, int) { of_tile[h] += score; });
    for (int h = 0; h < 2; h++) total[h] += of_tile[h];
    if (by_columns) add_columns<COUNT>(scores, before, sums, of_column, meet);
  });
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float sum = over_row(total[h]);
    if (lane_of() % 4 == 0) slot[rows.row[h].position] += sum;
  }
}

// In a kernel of its own on sm_90a.
Status triangle_sm90(const Pairs&, float* slots, int blocks, void* stream);

constexpr int SLOTS_SM90 = BAND / TILE;  // of a block, one for each group

}  // namespace dml
