// The gradient of rows, on the tensor cores that every GPU since sm_80 has.
#include "gradient.h"

#include "columns_sm90.h"

namespace dml {
namespace {

template <class T, int WHOLE, int KEPT>
using Columns = Stream<T, WHOLE, WHOLE ? 0 : KEPT>;

template <class T, int WHOLE, int KEPT>
__global__ void __launch_bounds__(THREADS, 1)
    gradient_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT Weights weights, DML_ARGUMENT Scale scale,
                    float* out) {
  out += int64_t(blockIdx.y) * pairs.x.given.n * pairs.x.given.d;
  const Tiles tiles(pairs, pairs.task.select, blockIdx.x, blockIdx.y, gridDim.y);
  Columns<T, WHOLE, KEPT> columns(pairs, blockIdx.x, tiles.first, tiles.end, int(blockIdx.z) * KEPT);
  Gradient<T, KEPT> gradient(pairs, weights);
  gradient.run(columns, tiles, out);
  gradient.write(out, scale);
}

template <class T, int WHOLE, int KEPT>
Status gradient(const Pairs& pairs, const Weights& weights, const Scale& scale, float* out, void* stream) {
  const dim3 grid{unsigned(pairs.x.padded / BAND), unsigned(pairs.task.splits),
                  unsigned((pairs.x.chunks + KEPT - 1) / KEPT)};
  const Launch how{grid, dim3{THREADS, 1, 1}, Columns<T, WHOLE, KEPT>::SHARED, stream};
  return launch(gradient_kernel<T, WHOLE, KEPT>, how, pairs, weights, scale, out);
}

}  // namespace
}  // namespace dml

int dml_cuda_gradient(const dml_side* x, const dml_side* r, const dml_task* task, const dml_stats* xs,
                      const dml_stats* rs, const float* middle, float near, int lifted, float factor,
                      const float* share, float* out, void* stream) {
  using namespace dml;
  const Weights weights{Weigher{*xs, *rs, lifted != 0}, middle, near};
  const Scale scale{factor, share};
  const Pairs pairs{*x, *r, *task};
  if (fits_sm90(pairs) && x->chunks <= CHUNKS_WITH_GRADIENT)
    return gradient_sm90(pairs, weights, scale, out, stream);
  return by_dtype(task->dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto chosen = x->chunks == 1   ? gradient<T, 1, 1>
                        : x->chunks == 2 ? gradient<T, 2, 2>
                                         : gradient<T, 0, 2>;
    return chosen(pairs, weights, scale, out, stream);
  });
}
