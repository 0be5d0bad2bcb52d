// What a pair is: selected or not, its score, its term, its weight in the gradient.
#pragma once

#include "../dmlfast_cuda.h"
#include "tiles.h"

namespace dml {

// Calls f with a zero of the type that prepared rows have.
template <class F>
Status by_dtype(int dtype, const F& f) {
  if (dtype == DML_FLOAT16) return f(float16());
  if (dtype == DML_BFLOAT16) return f(bfloat16());
  return f(0.0f);
}

constexpr float NOTHING = -1e30f;  // stands for -inf: its differences are defined
constexpr float LN2 = 0.6931471805599453f;
// |x|^2 + |r|^2 - 2 <x, r> loses a squared distance below this share of the norms to cancellation: such pairs
// are close, and computed from the differences of the rows as given.
constexpr float CLOSE = 1.0f / 1024;

__device__ __forceinline__ float component(const dml_rows& rows, int64_t row, int64_t k) {
  const int64_t at = row * rows.row_stride + k * rows.column_stride;
  if (rows.dtype == DML_FLOAT32) return static_cast<const float*>(rows.data)[at];
  if (rows.dtype == DML_FLOAT16) return to_float(static_cast<const float16*>(rows.data)[at]);
  return to_float(static_cast<const bfloat16*>(rows.data)[at]);
}

__device__ __forceinline__ int64_t given_row(const dml_side& side, int position) {
  return side.order ? side.order[position] : position;
}

__device__ __forceinline__ float squared_difference(const dml_side& x, int i, const dml_side& r, int j) {
  const int64_t row = given_row(x, i), column = given_row(r, j);
  float sum = 0.0f;
#pragma unroll 1
  for (int64_t k = 0; k < x.given.d; k++) {
    const float difference = component(x.given, row, k) - component(r.given, column, k);
    sum += difference * difference;
  }
  return sum;
}

// A row of x as its pairs with the columns r need it.
struct Row {
  int position, low, high, self;
  float norm, bias;
  bool there;

  __device__ __forceinline__ Row(const dml_side& x, int i) {
    position = i;
    there = i < x.given.n;
    low = there && x.low ? x.low[i] : 0;
    high = there && x.low ? x.high[i] : 0;
    self = there && x.self ? x.self[i] : -1;
    norm = x.norm[i];
    bias = there && x.bias ? x.bias[i] : 0.0f;
  }
};

__device__ __forceinline__ bool is_itself(const dml_side& r, const dml_task& task, const Row& row, int j) {
  return task.apart ? row.position == j : row.self == j || (r.self && r.self[j] == row.position);
}

// Whether a pair is selected; select: that of the task, or another.
__device__ __forceinline__ bool selected(const dml_side& r, const dml_task& task, int select, const Row& row,
                                         int j) {
  if (!row.there || j >= r.given.n) return false;
  const bool of_one_label = j >= row.low && j < row.high;
  if (select == DML_NEGATIVE) return !of_one_label;
  if (select == DML_POSITIVE && !of_one_label) return false;
  return select == DML_ALL || !is_itself(r, task, row, j);
}

__device__ __forceinline__ float term_of(float score, const dml_side& r, const dml_task& task, const Row& row,
                                         int j) {
  return score * task.scale + task.offset + row.bias + (r.bias ? r.bias[j] : 0.0f);
}

// A statistic, where nothing was selected so great that exp2(term - statistic) is 0.
__device__ __forceinline__ float or_never(float value) {
  return value > NOTHING / 2 ? value : -NOTHING;
}

// max(0, D + log(exp(row) + exp(column))) of statistics in powers of two; 0 where both are nothing.
__device__ __forceinline__ float hinge(float distance, float row, float column) {
  const float high = max(row, column), low = min(row, column);
  if (!(high > NOTHING / 2)) return 0.0f;
  return max(distance + LN2 * (high + log2(1.0f + exp2(low - high))), 0.0f);
}

// Both sides' statistics, as pairs are weighed by them.
struct Weigher {
  dml_stats xs, rs;
  bool lifted;

  // d loss / d score over scale, for terms and statistics of any span; 0 where the pair is not selected.
  __device__ __forceinline__ float operator()(float score, const dml_side& r, const dml_task& task,
                                              const Row& row, int j) const {
    float weight = 0.0f;
    if (selected(r, task, task.select, row, j)) {
      const float term = term_of(score, r, task, row, j);
      if (xs.grad) weight += part(xs, task, term, row.position);
      if (rs.grad) weight += part(rs, task, term, j);
    }
    if (lifted && selected(r, task, DML_POSITIVE, row, j))
      weight -= hinge(score, xs.value[row.position], rs.value[j]);
    return weight;
  }

 private:
  __device__ __forceinline__ static float part(const dml_stats& stats, const dml_task& task, float term,
                                               int at) {
    const float grad = stats.grad[at];
    return task.reduce == DML_SUM ? grad : grad * exp2(min(term - or_never(stats.value[at]), 0.0f));
  }
};

// The columns [low, high) of any label of some rows, which are in the order of their labels.
struct Span {
  int low = 0, high = 0;

  __device__ __forceinline__ Span(const dml_side& x, int first, int count) {
    if (!x.low || first >= x.given.n) return;
    low = x.low[first];
    high = x.high[min(int64_t(first + count), x.given.n) - 1];
  }
};

// Whether all pairs of a warp's rows, from position `first` on, and of a tile of columns are selected.
__device__ __forceinline__ bool takes_all(const dml_side& x, const dml_side& r, const dml_task& task,
                                          const Span& rows, int first, int tile) {
  const int begin = tile * TILE, end = begin + TILE;
  if (first + WARP_ROWS > x.given.n || end > r.given.n || task.select == DML_POSITIVE) return false;
  if (task.select == DML_NEGATIVE) return begin >= rows.high || end <= rows.low;
  if (task.select == DML_ALL) return true;
  return task.apart ? begin >= first + WARP_ROWS || end <= first : !x.self && !r.self;
}

// Squared distances of scores, with those of close pairs from the differences of their rows.
__device__ __forceinline__ void to_squared_distances(Scores& scores, const dml_side& x, const dml_side& r,
                                                     const dml_task& task, const Row (&rows)[2], int tile) {
  const int first = tile * TILE;
  uint32_t close = 0;
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float norms = rows[e / 2].norm + r.norm[first + column_of(f, e)];
      scores[f][e] = norms - 2.0f * scores[f][e];
      if (scores[f][e] <= norms * CLOSE) close |= 1u << (f * 4 + e);
    }
  }
#pragma unroll 1
  while (close) {
    const int bit = lowest_bit(close), f = bit / 4, e = bit % 4, j = first + column_of(f, e);
    close &= close - 1;
    const int i = e < 2 ? rows[0].position : rows[1].position;
    if (i >= x.given.n || j >= r.given.n || (task.apart && i == j)) continue;
    const float squared = squared_difference(x, i, r, j);
#pragma unroll
    for (int k = 0; k < FRAGMENTS * 4; k++)
      if (k == bit) scores[k / 4][k % 4] = squared;
  }
}

}  // namespace dml
