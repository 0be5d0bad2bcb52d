// The gradient of rows on sm_90a.
#include "columns_sm90.h"
#include "gradient.h"

namespace dml {
namespace {

template <int CHUNKS>
__global__ void __launch_bounds__(BLOCK, 1)
    gradient_sm90_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT Weights weights, DML_ARGUMENT Scale scale,
                         float* out) {
#ifdef DML_HOPPER
  const Tiles tiles(pairs, pairs.task.select, blockIdx.x, blockIdx.y, gridDim.y);
  out += int64_t(blockIdx.y) * pairs.x.given.n * pairs.x.given.d;
  with_columns<CHUNKS>(pairs.x.rows, pairs.r.rows, blockIdx.x, tiles, [&](auto& columns) {
    Gradient<bfloat16, CHUNKS> gradient(pairs, weights);
    gradient.run(columns, tiles, out);
    gradient.write(out, scale);
  });
#else
  __trap();
#endif
}

template <int CHUNKS>
Status gradient(const Pairs& pairs, const Weights& weights, const Scale& scale, float* out, void* stream) {
  return launch(gradient_sm90_kernel<CHUNKS>, how_sm90<CHUNKS>(pairs, stream), pairs, weights, scale, out);
}

}  // namespace

Status gradient_sm90(const Pairs& pairs, const Weights& weights, const Scale& scale, float* out,
                     void* stream) {
  return by_chunks<1, CHUNKS_WITH_GRADIENT>(pairs.x.chunks, [&](auto chunks) {
    return gradient<chunks.value>(pairs, weights, scale, out, stream);
  });
}

}  // namespace dml
