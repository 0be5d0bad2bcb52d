// What a pair is: selected or not, its score, its term, its weight in the gradient.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace dml {

// Calls f with a zero of the type that prepared rows have.
template <class F>
Status by_dtype(int dtype, const F& f) {
  if (dtype == DML_FLOAT16) return f(float16());
  if (dtype == DML_BFLOAT16) return f(bfloat16());
  return f(0.0f);
}

// |x|^2 + |r|^2 - 2 <x, r> loses a squared distance below this share of the norms to cancellation: such pairs
// are close, and computed from the differences of the rows as given.
constexpr float CLOSE = 1.0f / 1024;
constexpr float TINY = 1.2e-38f;  // approximate roots take less for 0

__host__ __device__ __forceinline__ int tiles_of(const dml_side& side) {
  return int((side.given.n + TILE - 1) / TILE);
}

// NaN where something given is not finite, else 0.
__device__ __forceinline__ float poison_of(const dml_side& x, const dml_side& r) {
  return 0.0f * (*x.largest + *r.largest);
}

__device__ __forceinline__ int64_t given_row(const dml_side& side, int position) {
  return side.order ? side.order[position] : position;
}

// A component of a row as it was prepared.
template <class T>
__device__ __forceinline__ float prepared(const dml_side& side, int64_t position, int64_t k) {
  constexpr int IN_CHUNK = components_of_chunk<T>;
  const char* const tile = static_cast<const char*>(side.rows) + position / TILE * side.chunks * TILE_CHUNK;
  return to_float(element<T>(tile + k / IN_CHUNK * TILE_CHUNK, int(position % TILE), int(k % IN_CHUNK)));
}

// By a whole warp, in one order wherever it is computed.
__device__ __forceinline__ float squared_difference(const dml_side& x, int i, const dml_side& r, int j) {
  const int64_t row = given_row(x, i), column = given_row(r, j);
  float sum = 0.0f;
#pragma unroll 1
  for (int64_t k = lane_of(); k < x.given.d; k += WARP) {
    const float difference = component(x.given, row, k) - component(r.given, column, k);
    sum += difference * difference;
  }
#pragma unroll
  for (int by = 1; by < WARP; by *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by);
  return sum;
}

// A row of x as its pairs with the columns r need it.
struct Row {
  int position, low, high;
  float norm;

  __device__ __forceinline__ Row(const dml_side& x, int i) : position(i), low(0), high(0), norm(x.norm[i]) {
    if (x.low && i < x.given.n) low = x.low[i], high = x.high[i];
  }
};

// What pairs are of: both sides, and what is taken over them.
struct Pairs {
  dml_side x, r;
  dml_task task;

  __device__ __forceinline__ bool has_bias() const { return x.bias || r.bias; }

  __device__ __forceinline__ bool exists(const Row& row, int j) const {
    return row.position < x.given.n && j < r.given.n && !(task.apart && row.position == j);
  }

  // Whether a pair is selected; select: that of the task, or another.
  __device__ __forceinline__ bool selected(int select, const Row& row, int j) const {
    if (row.position >= x.given.n || j >= r.given.n) return false;
    const bool of_one_label = j >= row.low && j < row.high;
    if (select == DML_NEGATIVE) return !of_one_label;
    if (select == DML_POSITIVE && !of_one_label) return false;
    return select == DML_ALL || !is_itself(row.position, j);
  }

  __device__ __forceinline__ bool selected(const Row& row, int j) const {
    return selected(task.select, row, j);
  }

  __device__ __forceinline__ float term(float score, int i, int j) const {
    float term = score * task.scale + task.offset;
    if (x.bias && i < x.given.n) term += x.bias[i];
    if (r.bias && j < r.given.n) term += r.bias[j];
    return term;
  }

 private:
  __device__ __forceinline__ bool is_itself(int i, int j) const {
    return task.apart ? i == j : (x.self && x.self[i] == j) || (r.self && r.self[j] == i);
  }
};

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
  __device__ __forceinline__ float operator()(float score, const Pairs& pairs, const Row& row, int j) const {
    float weight = 0.0f;
    if (pairs.selected(row, j)) {
      const float term = pairs.term(score, row.position, j);
      if (xs.grad) weight += part(xs, pairs.task, term, row.position);
      if (rs.grad) weight += part(rs, pairs.task, term, j);
    }
    if (lifted && pairs.selected(DML_POSITIVE, row, j))
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
__device__ __forceinline__ bool takes_all(const Pairs& pairs, const Span& rows, int first, int tile) {
  const auto& [x, r, task] = pairs;
  const int begin = tile * TILE, end = begin + TILE;
  if (first + WARP_ROWS > x.given.n || end > r.given.n || task.select == DML_POSITIVE) return false;
  if (task.select == DML_NEGATIVE) return begin >= rows.high || end <= rows.low;
  if (task.select == DML_ALL) return true;
  return task.apart ? begin >= first + WARP_ROWS || end <= first : !x.self && !r.self;
}

// What the columns of a thread have of values by position; 0 where there are none.
class OfColumns {
 public:
  OfColumns() = default;
  __device__ __forceinline__ OfColumns(const float* values, int tile) {
    const auto* const first = reinterpret_cast<const Both*>(values + tile * TILE + column_of(0, 0));
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) both_[f] = values ? first[f * 4] : Both{};
  }

  __device__ __forceinline__ float operator()(int f, int e) const { return both_[f].at[e % 2]; }

 private:
  struct alignas(8) Both {
    float at[2];
  };
  Both both_[FRAGMENTS];
};

// Adds up what the four threads of a row have.
template <class N>
__device__ __forceinline__ N over_row(N value) {
  value += __shfl_xor_sync(ALL_LANES, value, 1);
  return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

// The score of a pair of a thread, which gets another value.
__device__ __forceinline__ float exchange(Scores& scores, int pair, float value) {
  float before = 0.0f;
#pragma unroll
  for (int k = 0; k < FRAGMENTS * 4; k++)
    if (k == pair) before = scores[k / 4][k % 4], scores[k / 4][k % 4] = value;
  return before;
}

// Calls f(lane, pair, i, j) in the whole warp for one of its pairs after another: pair k of a thread is that
// of scores[k / 4][k % 4], and those whose bits are set in the mask of a thread are taken.
template <class F>
__device__ __forceinline__ void each_in_turn(uint32_t mask, const Row (&rows)[2], int tile, const F& f) {
#pragma unroll 1
  while (uint32_t lanes = __ballot_sync(ALL_LANES, mask != 0)) {
    const int pair = mask ? lowest_bit(mask) : 0, j = tile * TILE + column_of(pair / 4, pair % 4);
    const int i = pair % 4 < 2 ? rows[0].position : rows[1].position;
    mask &= mask - 1;
#pragma unroll 1
    for (; lanes; lanes &= lanes - 1) {
      const int lane = lowest_bit(lanes);
      f(lane, pair, __shfl_sync(ALL_LANES, i, lane), __shfl_sync(ALL_LANES, j, lane));
    }
  }
}

// Those of close pairs from the differences of their rows; none is negative then.
__device__ __forceinline__ void replace_close(Scores& squared, const OfColumns& norms, const Pairs& pairs,
                                              const Row (&rows)[2], int tile) {
  uint32_t close = 0;
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const bool is_close = squared[f][e] <= (rows[e / 2].norm + norms(f, e)) * CLOSE;
      if (is_close && pairs.exists(rows[e / 2], tile * TILE + column_of(f, e))) close |= 1u << (f * 4 + e);
      squared[f][e] = max(squared[f][e], 0.0f);
    }
  each_in_turn(close, rows, tile, [&](int lane, int pair, int i, int j) {
    const float difference = squared_difference(pairs.x, i, pairs.r, j);
    if (lane == lane_of()) exchange(squared, pair, difference);
  });
}

// Turns scores into squared distances. Returns whether pairs of the warp may be close: if not, all are
// greater than TINY or NaN.
__device__ __forceinline__ bool to_squared_distances(Scores& scores, const OfColumns& norms,
                                                     const Pairs& pairs, const Row (&rows)[2], int tile) {
  float least[4] = {INFINITY, INFINITY, INFINITY, INFINITY};
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float sum = rows[e / 2].norm + norms(f, e);
      scores[f][e] = fmaf(-2.0f, scores[f][e], sum);
      least[e] = min(least[e], fmaf(-CLOSE, sum, scores[f][e]));
    }
  const bool close = min(min(least[0], least[1]), min(least[2], least[3])) <= TINY;
  if (!__any_sync(ALL_LANES, close)) return false;
  replace_close(scores, norms, pairs, rows, tile);
  return true;
}

}  // namespace dml
