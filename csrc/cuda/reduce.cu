// What is added up over the columns of each row: terms, the hinges of positive pairs, weights.
#include "reduce.h"

#include "columns_sm90.h"

namespace dml {
namespace {

template <class T, int WHOLE>
__global__ void __launch_bounds__(THREADS, 1)
    reduce_kernel(DML_ARGUMENT Pairs pairs, float* tops, float* totals) {
  const Tiles tiles(pairs, pairs.task.select, blockIdx.x, blockIdx.y, gridDim.y);
  Stream<T, WHOLE, 0> columns(pairs, blockIdx.x, tiles.first, tiles.end);
  reduce_band(pairs, columns, tiles, tops, totals);
}

template <class T>
__global__ void __launch_bounds__(THREADS, 1)
    positives_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT dml_stats xs, DML_ARGUMENT dml_stats rs,
                     float* squares, int* counts, float* grad) {
  const BandRows rows(pairs.x, blockIdx.x);
  const float own[2] = {xs.value[rows.row[0].position], xs.value[rows.row[1].position]};
  float square[2] = {}, sum[2] = {};
  int count[2] = {};
  const Tiles tiles(pairs, DML_POSITIVE, blockIdx.x, blockIdx.y, gridDim.y);
  Stream<T, 0, 0> columns(pairs, blockIdx.x, tiles.first, tiles.end);
  each_tile(pairs, columns, tiles, rows, [&](Scores& scores, int tile) {
    float squares_of_tile[2] = {}, of_tile[2] = {};
    each_pair(scores, tile, [&](float& distance, int h, int j) {
      if (!pairs.selected(DML_POSITIVE, rows.row[h], j)) return;
      const float other = rs.value[j], joint = hinge(distance, own[h], other);
      squares_of_tile[h] += joint * joint;
      of_tile[h] += joint / (1.0f + exp2(min(other - own[h], 126.0f)));
      count[h]++;
    });
    for (int h = 0; h < 2; h++) square[h] += squares_of_tile[h], sum[h] += of_tile[h];
  });
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float all_squares = over_row(square[h]), all = over_row(sum[h]);
    const int pairs = over_row(count[h]), at = rows.row[h].position;
    if (lane_of() % 4 == 0) squares[at] = all_squares, counts[at] = pairs, grad[at] = all;
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 1)
    bias_gradient_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT Weigher weigh, float* out) {
  const BandRows rows(pairs.x, blockIdx.x);
  float sum[2] = {};
  const Tiles tiles(pairs, pairs.task.select, blockIdx.x, blockIdx.y, gridDim.y);
  Stream<T, 0, 0> columns(pairs, blockIdx.x, tiles.first, tiles.end);
  each_tile(pairs, columns, tiles, rows, [&](Scores& scores, int tile) {
    float of_tile[2] = {};
    each_pair(scores, tile,
              [&](float& score, int h, int j) { of_tile[h] += weigh(score, pairs, rows.row[h], j); });
    for (int h = 0; h < 2; h++) sum[h] += of_tile[h];
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
  const Pairs pairs{*x, *r, *task};
  if (fits_sm90(pairs)) return reduce_sm90(pairs, top, total, stream);
  return by_dtype(task->dtype, [&](auto zero) { return reduce<decltype(zero)>(pairs, top, total, stream); });
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
