// What is added up over the columns of each row: terms, the hinges of positive pairs, weights.
#include "columns_sm90.h"
#include "statistics.h"
#include "triangle.h"

namespace dml {
namespace {

template <class T, int WHOLE>
__global__ void __launch_bounds__(THREADS, 1)
    reduce_kernel(DML_ARGUMENT Pairs pairs, bool far_only, float* tops, float* totals) {
  if (far_only && Reach(pairs).is_short()) return;
  const Tiles tiles(pairs, pairs.task.select, blockIdx.x, blockIdx.y, gridDim.y);
  Stream<T, WHOLE, 0> columns(pairs, blockIdx.x, tiles.first, tiles.end);
  reduce_band(pairs, columns, tiles, tops, totals);
}

template <class T, int WHOLE>
__global__ void __launch_bounds__(THREADS, 1) triangle_kernel(DML_ARGUMENT Pairs pairs, float* slots) {
  using Columns = Stream<T, WHOLE, 0>;
  const Reach reach(pairs);
  if (!reach.is_short()) return;
  auto& sums = *reinterpret_cast<Sums<WARPS>*>(shared_memory() + Columns::SHARED);
  slots += int64_t(blockIdx.x) * pairs.x.padded;
  Triangle(pairs).each_run([&](int band, const Tiles& tiles) {
    Columns columns(pairs, band, tiles.first, tiles.end);
    add_run<WARPS>(pairs, columns, band, tiles, reach.high, sums, slots, [] { __syncthreads(); });
    columns.end();
  });
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

template <class T, int WHOLE>
Status reduce(const Pairs& pairs, float* tops, float* totals, float* slots, int blocks, void* stream) {
  if (slots) {
    const Launch with_sums{dim3{unsigned(blocks), 1, 1}, dim3{THREADS, 1, 1},
                           Stream<T, WHOLE, 0>::SHARED + sizeof(Sums<WARPS>), stream};
    const Status status = launch(triangle_kernel<T, WHOLE>, with_sums, pairs, slots);
    if (status) return status;
  }
  return launch(reduce_kernel<T, WHOLE>, how<WHOLE, T>(pairs, stream), pairs, slots != nullptr, tops, totals);
}

// How many blocks share the triangle; 0 where it does not serve.
int blocks_of_triangle(const Pairs& pairs) {
  const dml_task& task = pairs.task;
  Gpu gpu;
  if (pairs.x.rows != pairs.r.rows || pairs.x.bias || pairs.r.bias || task.reduce != DML_LOGSUMEXP ||
      task.select == DML_POSITIVE || find_gpu(gpu))
    return 0;
  const int tiles = tiles_of(pairs.x);
  return int(min(int64_t(gpu.multiprocessors), int64_t(tiles) * tiles / 4 + 1));
}

}  // namespace
}  // namespace dml

using namespace dml;

int dml_cuda_reduce_slots(const dml_side* x, const dml_side* r, const dml_task* task) {
  const Pairs pairs{*x, *r, *task};
  return blocks_of_triangle(pairs) * (fits_sm90(pairs) ? SLOTS_SM90 : 1);
}

int dml_cuda_reduce(const dml_side* x, const dml_side* r, const dml_task* task, float* parts, float* slots,
                    float* value, float* result, void* stream) {
  const Pairs pairs{*x, *r, *task};
  float *const tops = parts, *const totals = parts + task->splits * x->padded;
  const int blocks = slots ? blocks_of_triangle(pairs) : 0;
  Status status;
  if (fits_sm90(pairs)) {
    status = slots ? triangle_sm90(pairs, slots, blocks, stream) : Status(0);
    if (!status) status = reduce_sm90(pairs, slots != nullptr, tops, totals, stream);
  } else {
    status = by_dtype(task->dtype, [&](auto zero) {
      using T = decltype(zero);
      const auto chosen = x->chunks == 1 ? reduce<T, 1> : x->chunks == 2 ? reduce<T, 2> : reduce<T, 0>;
      return chosen(pairs, tops, totals, slots, blocks, stream);
    });
  }
  if (status) return status;
  return combine(pairs, tops, totals, slots, slots ? dml_cuda_reduce_slots(x, r, task) : 0, value, result,
                 stream);
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
