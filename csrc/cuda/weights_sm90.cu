// Blocks of weights on sm_90a, for rows that are too wide for a band to hold their gradient.
#include "blocks.h"
#include "columns_sm90.h"
#include "gradient.h"

namespace dml {
namespace {

// Blocks that share columns: a tile is of more bytes than the second-level cache has for each multiprocessor
// while it is multiplied with a band.
constexpr int SHARING = 2;

#ifdef DML_HOPPER
// Takes what near pairs weigh away; whether they weighed anything.
__device__ __forceinline__ bool drop(Scores& weights, uint32_t near) {
  bool any = false;
#pragma unroll
  for (int k = 0; k < FRAGMENTS * 4; k++)
    if (near >> k & 1) any |= weights[k / 4][k % 4] != 0.0f, weights[k / 4][k % 4] = 0.0f;
  return any;
}

__device__ __forceinline__ void write(const Scores& weights, bfloat16* out, int stride) {
  store_in_lines([&](int h) { return out + row_of(h * 2) * stride; },
                 [&](int h, int f) { return packed(weights[f][h * 2], weights[f][h * 2 + 1]); });
}
#endif

template <int CHUNKS>
__global__ void __launch_bounds__(BLOCK, 1)
    weights_sm90_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT Weights weights, DML_ARGUMENT dml_block block,
                        bfloat16* out, int stride, float* sums, uint8_t* nears) {
#ifdef DML_HOPPER
  // of an odd number of bands the last one is looked at twice, with the same result
  const int of_block = min(int(blockIdx.x), block.bands - 1);
  const int band = block.band + of_block, part = block.part + blockIdx.y, splits = pairs.task.splits;
  const int first = Tiles(pairs, DML_ALL, band, block.part, splits).first;
  const Tiles tiles(pairs, DML_ALL, band, part, splits);
  with_columns<CHUNKS, SHARING>(pairs.x.rows, pairs.r.rows, band, tiles, [&](auto& columns) {
    RowWeights<false> rows(pairs, weights, band);
    const int row = of_block * BAND + warp_of() * WARP_ROWS;
    bool near = false;
    for (int tile = tiles.first; tile < tiles.end; tile++) {
      Scores scores;
      rows.load(tile);
      columns.next(scores, true);
      if (const uint32_t found = rows.weigh(scores, tile)) near |= drop(scores, found);
      rows.template add<bfloat16>(scores);
      write(scores, out + row * stride + (tile - first) * TILE, stride);
    }
    if (near) nears[band * splits + part] = 1;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float sum = rows.sum(h);
      if (lane_of() % 4 == 0) sums[int64_t(part) * block.bands * BAND + row + row_of(h * 2)] = sum;
    }
  });
#else
  __trap();
#endif
}

template <int CHUNKS>
__global__ void __launch_bounds__(BLOCK, 1)
    near_sm90_kernel(DML_ARGUMENT Pairs pairs, DML_ARGUMENT Weights weights, const uint8_t* nears,
                     DML_ARGUMENT Scale scale, float* out) {
#ifdef DML_HOPPER
  const int band = blockIdx.x, splits = pairs.task.splits;
  const auto each_part = [&](const auto& f) {
    for (int part = 0; part < splits; part++)
      if (nears[band * splits + part]) f(Tiles(pairs, DML_ALL, band, part, splits));
  };
  int count = 0;
  each_part([&](const Tiles& tiles) { count += tiles.end - tiles.first; });
  if (!count) return;
  with_columns<CHUNKS>(
      pairs.r.rows, count, [&](auto& fetch) { each_part([&](const Tiles& tiles) { fetch(tiles); }); },
      [&](auto& columns) {
        columns.take(pairs.x.rows, band);
        RowWeights<false> rows(pairs, weights, band);
        const float factor = scale();
        each_part([&](const Tiles& tiles) {
          for (int tile = tiles.first; tile < tiles.end; tile++) {
            Scores scores;
            rows.load(tile);
            columns.next(scores, true);
            const uint32_t near = rows.weigh(scores, tile);
            rows.take_near(scores, near, tile, [&](int i, int j, float weight) {
              add_difference(pairs, i, j, factor * weight, 0, pairs.x.given.d, out);
            });
          }
        });
      });
#else
  __trap();
#endif
}

template <class F>
Status by_wide_chunks(const Pairs& pairs, const F& f) {
  return by_chunks<CHUNKS_WITH_GRADIENT + 1, MOST_CHUNKS>(pairs.x.chunks, f);
}

}  // namespace
}  // namespace dml

using namespace dml;

int dml_cuda_weights_fit(const dml_side* x, const dml_side* r, const dml_task* task) {
  return fits_sm90(Pairs{*x, *r, *task}) && x->chunks > CHUNKS_WITH_GRADIENT;
}

int dml_cuda_weights(const dml_side* x, const dml_side* r, const dml_task* task, const dml_stats* xs,
                     const dml_stats* rs, const float* middle, float near, int lifted, const dml_block* block,
                     void* weights, int stride, float* sums, uint8_t* nears, void* stream) {
  const Pairs pairs{*x, *r, *task};
  return by_wide_chunks(pairs, [&](auto chunks) {
    Launch how = how_sm90<chunks.value>(pairs, stream);
    how.cluster = SHARING;
    how.grid = dim3{unsigned((block->bands + SHARING - 1) / SHARING * SHARING), unsigned(block->parts), 1};
    return launch(weights_sm90_kernel<chunks.value>, how, pairs,
                  Weights{Weigher{*xs, *rs, lifted != 0}, middle, near}, *block,
                  static_cast<bfloat16*>(weights), stride, sums, nears);
  });
}

int dml_cuda_near(const dml_side* x, const dml_side* r, const dml_task* task, const dml_stats* xs,
                  const dml_stats* rs, const float* middle, float near, int lifted, const uint8_t* nears,
                  float factor, const float* share, float* out, void* stream) {
  const Pairs pairs{*x, *r, *task};
  return by_wide_chunks(pairs, [&](auto chunks) {
    Launch how = how_sm90<chunks.value>(pairs, stream);
    how.grid.y = 1;
    return launch(near_sm90_kernel<chunks.value>, how, pairs,
                  Weights{Weigher{*xs, *rs, lifted != 0}, middle, near}, nears, Scale{factor, share}, out);
  });
}
