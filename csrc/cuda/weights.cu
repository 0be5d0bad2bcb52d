// Before and after the products of blocks of weights: their columns, and the gradients that come of them.
#include "blocks.h"
#include "gradient.h"

namespace dml {
namespace {

// One warp a place.
__global__ void columns_kernel(DML_ARGUMENT dml_side r, bfloat16* columns, int64_t width) {
  const int64_t place = int64_t(blockIdx.x) * WARPS + warp_of();
  const int64_t position = place / TILE * TILE + column_at(int(place % TILE));
  const bool there = position < r.given.n;
  const int64_t row = there ? given_row(r, int(position)) : 0;
  for (int64_t k = lane_of(); k < width; k += WARP)
    columns[place * width + k] = to_bfloat16(there && k < r.given.d ? component(r.given, row, k) : 0.0f);
}

// One warp a row.
__global__ void finish_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT dml_block block, const float* sums,
                              const float* products, int64_t width, DML_ARGUMENT Scale scale, float* out) {
  const int64_t at = int64_t(blockIdx.x) * WARPS + warp_of(), position = int64_t(block.band) * BAND + at;
  if (position >= pairs.x.given.n) return;
  float sum = 0.0f;
  for (int part = lane_of(); part < pairs.task.splits; part += WARP)
    sum += sums[int64_t(part) * block.bands * BAND + at];
  for (int by = 1; by < WARP; by *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by);
  const float factor = scale(), poison = poison_of(pairs.x, pairs.r);
  const bool distance = pairs.task.score == DML_DISTANCE;
  const int64_t d = pairs.x.given.d, row = given_row(pairs.x, int(position));
#pragma unroll 4
  for (int64_t k = lane_of(); k < d; k += WARP) {
    const float product = products[at * width + k];
    const float own = distance ? sum * prepared<bfloat16>(pairs.x, position, k) - product : product;
    out[row * d + k] = factor * own + poison;
  }
}

Launch for_rows(int64_t rows, void* stream) {
  return {dim3{unsigned(rows / WARPS), 1, 1}, dim3{THREADS, 1, 1}, 0, stream};
}

}  // namespace
}  // namespace dml

using namespace dml;

int dml_cuda_columns(const dml_side* r, void* columns, int64_t width, void* stream) {
  return launch(columns_kernel, for_rows(int64_t(tiles_of(*r)) * TILE, stream), *r,
                static_cast<bfloat16*>(columns), width);
}

int dml_cuda_finish(const dml_side* x, const dml_side* r, const dml_task* task, const dml_block* block,
                    const float* sums, const float* products, int64_t width, float factor, const float* share,
                    float* out, void* stream) {
  return launch(finish_kernel, for_rows(int64_t(block->bands) * BAND, stream), Pairs{*x, *r, *task}, *block,
                sums, products, width, Scale{factor, share}, out);
}
