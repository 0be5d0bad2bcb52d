// Tiles of columns on sm_90a. One warp has the copy engine fetch them. Two groups of four warps, with half a
// band of rows each, take turns: while one multiplies, the other works on its products.
#pragma once

#include "hopper.h"
#include "stream.h"

namespace dml {

// Chunks of a row that registers hold, and beside its gradient.
constexpr int MOST_CHUNKS = 8, CHUNKS_WITH_GRADIENT = 2;
constexpr int GROUPS = BAND / TILE;
constexpr int BLOCK = (GROUPS + 1) * GROUP * WARP;

// Shared memory: tiles of columns with the barriers of each stage, full and empty ones.
template <int CHUNKS>
struct Stages {
  static constexpr int COUNT = CHUNKS > 6 ? 3 : 4;  // as many as a multiprocessor has room for, four at most

  char tiles[COUNT][CHUNKS * TILE_CHUNK];
  Phases full[COUNT], empty[COUNT];
};

#ifdef DML_HOPPER
// The order of the groups: a group enters, hands its products to the tensor cores, and lets the other one in.
__device__ __forceinline__ void enter(int group) {
  __syncwarp();
  meet(1 + group, GROUPS * GROUP * WARP);
}
__device__ __forceinline__ void let_in(int group) {
  pass(1 + group, GROUPS * GROUP * WARP);
}

// SHARING: blocks of a cluster whose tiles are the same.
template <int CHUNKS, int SHARING>
class HopperColumns {
 public:
  static constexpr bool HAS_ROOM = true;
  static constexpr int STAGES = Stages<CHUNKS>::COUNT;

  // tiles: how many there will be.
  __device__ __forceinline__ HopperColumns(Stages<CHUNKS>& stages, int tiles)
      : stages_(stages), group_(warp_of() / GROUP), tiles_(tiles) {
    if (group_ == 1 && tiles) let_in(0);
  }

  __device__ __forceinline__ int group() const { return group_; }

  // Takes the rows of a band for the tiles that come next.
  __device__ __forceinline__ void take(const void* rows, int band) {
    const char* const tile =
        static_cast<const char*>(rows) + (int64_t(band) * GROUPS + group_) * CHUNKS * TILE_CHUNK;
    const int row = warp_of() % GROUP * WARP_ROWS;
#pragma unroll
    for (int step = 0; step < CHUNKS * 4; step++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int place = place_of(row + row_of(k % 2 * 2), step % 4 * 2 + k / 2) + lane_of() % 4 * 4;
        rows_[step][k] = *reinterpret_cast<const uint32_t*>(tile + step / 4 * TILE_CHUNK + place);
      }
  }

  // The products with the tile at hand, whose columns are not needed any more if it is `released`.
  __device__ __forceinline__ void next(Scores& scores, bool released = false) {
    const int stage = tile_ % STAGES;
    await(stages_.full[stage], tile_ / STAGES % 2);
    enter(group_);
    hold(scores);
    begin_products();
    score(scores, stage);
    end_products();
    leave(!released || tile_ + 1 < tiles_);
    await_products();
    hold(scores);
    if (released) release(stage);
  }

  // Adds to sums the columns of the tile at hand times weights; turns these into the products with the next
  // tile, if there is one.
  __device__ __forceinline__ void advance(Scores& scores, float (&sums)[CHUNKS * 8][4]) {
    uint32_t weights[TILE / 16][4];
#pragma unroll
    for (int step = 0; step < TILE / 16; step++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const float* const w = scores[step * 2 + k / 2] + k % 2 * 2;
        weights[step][k] = packed(w[0], w[1]);
      }
    const int stage = tile_ % STAGES, later = (tile_ + 1) % STAGES;
    const bool more = tile_ + 1 < tiles_;
    if (more) await(stages_.full[later], (tile_ + 1) / STAGES % 2);
    enter(group_);
    hold(sums);
    hold(scores);
    begin_products();
#pragma unroll
    for (int step = 0; step < TILE / 16; step++)
#pragma unroll
      for (int c = 0; c < CHUNKS; c++) {
        const int offset = c * TILE_CHUNK + step * 16 * CHUNK;
        multiply_add<true>(*reinterpret_cast<float (*)[8][4]>(sums + c * 8), weights[step],
                           Operand{stages_.tiles[stage], offset, TILE_CHUNK, 8 * CHUNK});
      }
    score(scores, more ? later : stage);  // for nothing in the end: a branch would hold the products up
    end_products();
    leave(more);
    await_products();
    hold(sums);
    hold(scores);
    release(stage);
  }

 private:
  // Ends a turn; the second group's last one ends all.
  __device__ __forceinline__ void leave(bool more) const {
    if (more || group_ == 0) let_in(1 - group_);
  }

  __device__ __forceinline__ void release(int stage) {
    if constexpr (SHARING > 1) {
      if (lane_of() < SHARING) arrive_at(stages_.empty[stage], lane_of());
    } else {
      if (lane_of() == 0) arrive(stages_.empty[stage]);
    }
    tile_++;
  }

  __device__ __forceinline__ void score(Scores& scores, int stage) const {
    const auto operand = [&](int step) {
      const int offset = step / 4 * TILE_CHUNK + step % 4 * 2 * UNIT;
      return Operand{stages_.tiles[stage], offset, UNIT, 8 * CHUNK};
    };
    multiply_add<false, true>(scores, rows_[0], operand(0));
#pragma unroll
    for (int step = 1; step < CHUNKS * 4; step++) multiply_add<false>(scores, rows_[step], operand(step));
  }

  Stages<CHUNKS>& stages_;
  const int group_, tiles_;
  int tile_ = 0;
  uint32_t rows_[CHUNKS * 4][4];
};

// Has the copy engine fetch tiles, each when the stage that it goes to is empty; of tiles that blocks share
// each block a part, for all of them.
template <int CHUNKS, int SHARING>
class Fetcher {
 public:
  __device__ __forceinline__ Fetcher(Stages<CHUNKS>& stages, const void* columns)
      : stages_(stages), columns_(static_cast<const char*>(columns)) {}

  __device__ __forceinline__ void operator()(const Tiles& tiles) {
    constexpr int BYTES = CHUNKS * TILE_CHUNK, PART = BYTES / SHARING, STAGES = Stages<CHUNKS>::COUNT;
    const int part = int(blockIdx.x) % SHARING * PART;
    for (int tile = tiles.first; tile < tiles.end; tile++, count_++) {
      const int stage = count_ % STAGES;
      await(stages_.empty[stage], count_ / STAGES % 2 ^ 1);
      arrive_expecting(stages_.full[stage], BYTES);
      char* const to = stages_.tiles[stage] + part;
      const char* const from = columns_ + int64_t(tile) * BYTES + part;
      if constexpr (SHARING > 1)
        copy_to_all(to, from, PART, stages_.full[stage], SHARING);
      else
        copy(to, from, PART, stages_.full[stage]);
    }
  }

  // Waits for the last arrivals of other blocks, which need the shared memory of this one for them.
  __device__ __forceinline__ void end() const {
    constexpr int STAGES = Stages<CHUNKS>::COUNT;
    for (int k = max(count_ - STAGES, 0); k < count_; k++) await(stages_.empty[k % STAGES], k / STAGES % 2);
  }

 private:
  Stages<CHUNKS>& stages_;
  const char* const columns_;
  int count_ = 0;
};

// Calls work(columns) in the threads of the groups, and fetch(fetcher) in one of the other warps, which
// fetches tiles of prepared columns.
template <int CHUNKS, int SHARING = 1, class Fetch, class Work>
__device__ __forceinline__ void with_columns(const void* columns, int tiles, const Fetch& fetch,
                                             const Work& work) {
  auto& stages = *reinterpret_cast<Stages<CHUNKS>*>(shared_memory());
  if (threadIdx.x == 0) {
    for (int k = 0; k < Stages<CHUNKS>::COUNT; k++)
      begin(stages.full[k], 1), begin(stages.empty[k], SHARING * GROUPS * GROUP);
    publish_phases();
  }
  __syncwarp();
  SHARING > 1 ? cluster_barrier() : __syncthreads();
  if (warp_of() >= GROUPS * GROUP) {
    leave_registers<24>();
    if (threadIdx.x != GROUPS * GROUP * WARP) return;
    Fetcher<CHUNKS, SHARING> fetcher(stages, columns);
    fetch(fetcher);
    if constexpr (SHARING > 1) fetcher.end();
  } else {
    take_registers<240>();
    HopperColumns<CHUNKS, SHARING> fetched(stages, tiles);
    work(fetched);
  }
}

// The same for a band of prepared rows.
template <int CHUNKS, int SHARING = 1, class Work>
__device__ __forceinline__ void with_columns(const void* rows, const void* columns, int band,
                                             const Tiles& tiles, const Work& work) {
  with_columns<CHUNKS, SHARING>(
      columns, tiles.end - tiles.first, [&](auto& fetch) { fetch(tiles); },
      [&](auto& fetched) {
        fetched.take(rows, band);
        work(fetched);
      });
}
#endif

// Whether the library has the code for sm_90a.
#if defined(DML_SM90A) || defined(DML_EMULATED)
constexpr bool HAS_SM90A = true;
#else
constexpr bool HAS_SM90A = false;
#endif

// Whether kernels for sm_90a serve these pairs on the GPU at hand. The gradient of wide rows comes of blocks
// of weights, all of them: where few are selected, it takes less of the rows that are not.
inline bool fits_sm90(const Pairs& pairs) {
  const int most = pairs.task.select == DML_POSITIVE ? CHUNKS_WITH_GRADIENT : MOST_CHUNKS;
  Gpu gpu;
  return HAS_SM90A && pairs.task.dtype == DML_BFLOAT16 && pairs.x.chunks <= most && find_gpu(gpu) == 0 &&
         gpu.major == 9;
}

// Calls f with a number of chunks from FIRST to LAST, which the argument's type has.
template <int FIRST, int LAST, class F>
Status by_chunks(int chunks, const F& f) {
  if (chunks == FIRST) return f(std::integral_constant<int, FIRST>());
  if constexpr (FIRST < LAST) return by_chunks<FIRST + 1, LAST>(chunks, f);
  return INVALID;
}

template <int CHUNKS>
Launch how_sm90(const Pairs& pairs, void* stream) {
  const dim3 grid{unsigned(pairs.x.padded / BAND), unsigned(pairs.task.splits), 1};
  return {grid, dim3{BLOCK, 1, 1}, sizeof(Stages<CHUNKS>), stream};
}

}  // namespace dml
