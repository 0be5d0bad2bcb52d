// Reductions over the columns of each row on sm_90a.
#include "columns_sm90.h"
#include "triangle.h"

namespace dml {
namespace {

template <int CHUNKS>
__global__ void __launch_bounds__(BLOCK, 1)
    reduce_sm90_kernel(DML_ARGUMENT Pairs pairs, bool far_only, float* tops, float* totals) {
#ifdef DML_HOPPER
  if (far_only && Reach(pairs).is_short()) return;
  const Tiles tiles(pairs, pairs.task.select, blockIdx.x, blockIdx.y, gridDim.y);
  with_columns<CHUNKS>(pairs.x.rows, pairs.r.rows, blockIdx.x, tiles,
                       [&](auto& columns) { reduce_band(pairs, columns, tiles, tops, totals); });
#else
  __trap();
#endif
}

template <int CHUNKS>
__global__ void __launch_bounds__(BLOCK, 1) triangle_sm90_kernel(DML_ARGUMENT Pairs pairs, float* slots) {
#ifdef DML_HOPPER
  const Reach reach(pairs);
  if (!reach.is_short()) return;
  const Triangle triangle(pairs);
  auto* const sums = reinterpret_cast<Sums<GROUP>*>(shared_memory() + sizeof(Stages<CHUNKS>));
  with_columns<CHUNKS>(
      pairs.r.rows, int(triangle.end - triangle.first),
      [&](auto& fetch) { triangle.each_run([&](int, const Tiles& tiles) { fetch(tiles); }); },
      [&](auto& columns) {
        const int group = columns.group();
        float* const slot = slots + (int64_t(blockIdx.x) * GROUPS + group) * pairs.x.padded;
        triangle.each_run([&](int band, const Tiles& tiles) {
          columns.take(pairs.x.rows, band);
          add_run<GROUP>(pairs, columns, band, tiles, reach.high, sums[group], slot,
                         [&] { meet(1 + GROUPS + group, GROUP * WARP); });
        });
      });
#else
  __trap();
#endif
}

template <int CHUNKS>
Status reduce(const Pairs& pairs, bool far_only, float* tops, float* totals, void* stream) {
  return launch(reduce_sm90_kernel<CHUNKS>, how_sm90<CHUNKS>(pairs, stream), pairs, far_only, tops, totals);
}

template <int CHUNKS>
Status triangle(const Pairs& pairs, float* slots, int blocks, void* stream) {
  Launch how = how_sm90<CHUNKS>(pairs, stream);
  how.grid = dim3{unsigned(blocks), 1, 1};
  how.shared += GROUPS * sizeof(Sums<GROUP>);
  return launch(triangle_sm90_kernel<CHUNKS>, how, pairs, slots);
}

}  // namespace

Status reduce_sm90(const Pairs& pairs, bool far_only, float* tops, float* totals, void* stream) {
  return by_chunks<1, MOST_CHUNKS>(pairs.x.chunks, [&](auto chunks) {
    return reduce<chunks.value>(pairs, far_only, tops, totals, stream);
  });
}

Status triangle_sm90(const Pairs& pairs, float* slots, int blocks, void* stream) {
  return by_chunks<1, MOST_CHUNKS>(
      pairs.x.chunks, [&](auto chunks) { return triangle<chunks.value>(pairs, slots, blocks, stream); });
}

}  // namespace dml
