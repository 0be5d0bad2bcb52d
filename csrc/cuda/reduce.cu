// What is added up over the columns of each row: terms, the hinges of positive pairs, weights.
#include "stream.h"

namespace dml {
namespace {

// The rows of a thread: two of its warp's, whose columns it shares with three other threads.
struct Rows {
  const int first;
  const Row row[2];

  __device__ __forceinline__ Rows(const dml_side& x, int band)
      : first(band * BAND + warp_of() * WARP_ROWS),
        row{Row(x, first + row_of(0)), Row(x, first + row_of(2))} {}
};

// Hands scores to visit(scores, tile), tile after tile; distances are not squared.
template <class T, int WHOLE, class Visit>
__device__ __forceinline__ void each_tile(const Pairs& pairs, int select, const Rows& rows,
                                          const Visit& visit) {
  const int band = blockIdx.x;
  const Tiles tiles(pairs, select, band, blockIdx.y, gridDim.y);
  Stream<T, WHOLE, 0> stream(pairs, band, tiles.first, tiles.end);
  for (int tile = tiles.first; tile < tiles.end; tile++) {
    Scores scores;
    stream.next(scores);
    if (pairs.task.score == DML_DISTANCE) {
      to_squared_distances(scores, pairs, rows.row, tile);
#pragma unroll
      for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
        for (int e = 0; e < 4; e++) scores[f][e] = sqrtf(max(scores[f][e], 0.0f));
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

// Adds up what the four threads of a row have.
template <class N>
__device__ __forceinline__ N over_row(N value) {
  value += __shfl_xor_sync(ALL_LANES, value, 1);
  return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

template <class T, int WHOLE>
__global__ void __launch_bounds__(THREADS)
    reduce_kernel(DML_ARGUMENT Pairs pairs, float* tops, float* totals) {
  const Rows rows(pairs.x, blockIdx.x);
  const Span span(pairs.x, rows.first, WARP_ROWS);
  const bool exponential = pairs.task.reduce == DML_LOGSUMEXP;
  float top[2] = {NOTHING, NOTHING}, total[2] = {};
  each_tile<T, WHOLE>(pairs, pairs.task.select, rows, [&](Scores& scores, int tile) {
    const bool all = takes_all(pairs, span, rows.first, tile);
    const float none = exponential ? -INFINITY : 0.0f;
    each_pair(scores, tile, [&](float& score, int h, int j) {
      const bool taken = all || pairs.selected(rows.row[h], j);
      score = taken ? pairs.term(score, rows.row[h].position, j) : none;
    });
    if (exponential) {
      float high[2] = {top[0], top[1]};
      each_pair(scores, tile, [&](float& term, int h, int) { high[h] = max(high[h], term); });
      for (int h = 0; h < 2; h++) total[h] *= exp2(top[h] - high[h]), top[h] = high[h];
      each_pair(scores, tile, [&](float& term, int h, int) { term = exp2(term - top[h]); });
    }
    each_pair(scores, tile, [&](float& term, int h, int) { total[h] += term; });
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

template <class T>
__global__ void __launch_bounds__(THREADS)
    positives_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT dml_stats xs, DML_ARGUMENT dml_stats rs,
                     float* squares, int* counts, float* grad) {
  const Rows rows(pairs.x, blockIdx.x);
  const float own[2] = {xs.value[rows.row[0].position], xs.value[rows.row[1].position]};
  float square[2] = {}, sum[2] = {};
  int count[2] = {};
  each_tile<T, 0>(pairs, DML_POSITIVE, rows, [&](Scores& scores, int tile) {
    each_pair(scores, tile, [&](float& distance, int h, int j) {
      if (!pairs.selected(DML_POSITIVE, rows.row[h], j)) return;
      const float other = rs.value[j], joint = hinge(distance, own[h], other);
      square[h] += joint * joint;
      sum[h] += joint / (1.0f + exp2(min(other - own[h], 126.0f)));
      count[h]++;
    });
  });
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float all_squares = over_row(square[h]), all = over_row(sum[h]);
    const int pairs = over_row(count[h]), at = rows.row[h].position;
    if (lane_of() % 4 == 0) squares[at] = all_squares, counts[at] = pairs, grad[at] = all;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    bias_gradient_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT Weigher weigh, float* out) {
  const Rows rows(pairs.x, blockIdx.x);
  float sum[2] = {};
  each_tile<T, 0>(pairs, pairs.task.select, rows, [&](Scores& scores, int tile) {
    each_pair(scores, tile,
              [&](float& score, int h, int j) { sum[h] += weigh(score, pairs, rows.row[h], j); });
  });
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float all = over_row(sum[h]);
    if (lane_of() % 4 == 0) out[rows.row[h].position] = all;
  }
}

template <int WHOLE, class T>
Launch how(const Pairs& pairs, void* stream) {
  const dim3 grid{unsigned(pairs.x.padded / BAND), unsigned(pairs.task.splits), 1};
  return {grid, dim3{THREADS, 1, 1}, Stream<T, WHOLE, 0>::SHARED, stream};
}

template <class T>
Status reduce(const Pairs& pairs, float* top, float* total, void* stream) {
  if (pairs.x.chunks == 1) return launch(reduce_kernel<T, 1>, how<1, T>(pairs, stream), pairs, top, total);
  if (pairs.x.chunks == 2) return launch(reduce_kernel<T, 2>, how<2, T>(pairs, stream), pairs, top, total);
  return launch(reduce_kernel<T, 0>, how<0, T>(pairs, stream), pairs, top, total);
}

}  // namespace
}  // namespace dml

using namespace dml;

int dml_cuda_reduce(const dml_side* x, const dml_side* r, const dml_task* task, float* top, float* total,
                    void* stream) {
  return by_dtype(task->dtype, [&](auto zero) {
    return reduce<decltype(zero)>(Pairs{*x, *r, *task}, top, total, stream);
  });
}

int dml_cuda_positives(const dml_side* x, const dml_side* r, const dml_task* task, const dml_stats* xs,
                       const dml_stats* rs, float* squares, int32_t* counts, float* grad, void* stream) {
  const Pairs pairs{*x, *r, *task};
  return by_dtype(task->dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(positives_kernel<T>, how<0, T>(pairs, stream), pairs, *xs, *rs, squares, counts, grad);
  });
}

int dml_cuda_bias_gradient(const dml_side* x, const dml_side* r, const dml_task* task, const dml_stats* xs,
                           const dml_stats* rs, float* out, void* stream) {
  const Pairs pairs{*x, *r, *task};
  return by_dtype(task->dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch(bias_gradient_kernel<T>, how<0, T>(pairs, stream), pairs, Weigher{*xs, *rs, false}, out);
  });
}
