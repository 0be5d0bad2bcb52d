// Reductions over the columns of each row on sm_90a.
#include "columns_sm90.h"
#include "reduce.h"

namespace dml {
namespace {

template <int CHUNKS>
__global__ void __launch_bounds__(BLOCK, 1)
    reduce_sm90_kernel(DML_ARGUMENT Pairs pairs, float* tops, float* totals) {
#ifdef DML_HOPPER
  const Tiles tiles(pairs, pairs.task.select, blockIdx.x, blockIdx.y, gridDim.y);
  with_columns<CHUNKS>(pairs, tiles,
                       [&](auto& columns) { reduce_band(pairs, columns, tiles, tops, totals); });
#endif
}

template <int CHUNKS>
Status reduce(const Pairs& pairs, float* top, float* total, void* stream) {
  return launch(reduce_sm90_kernel<CHUNKS>, how_sm90<CHUNKS>(pairs, stream), pairs, top, total);
}

}  // namespace

Status reduce_sm90(const Pairs& pairs, float* top, float* total, void* stream) {
  return (pairs.x.chunks == 1 ? reduce<1> : reduce<2>)(pairs, top, total, stream);
}

}  // namespace dml
