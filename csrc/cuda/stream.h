// The scores of a band of rows with one tile of columns after another, which are copied while those before
// are worked on.
#pragma once

#include "pairs.h"

namespace dml {

// WHOLE > 0: rows of so many chunks, all of which stay in shared memory. WHOLE = 0: rows of any number of
// chunks, which come one by one; KEPT of them, those of the columns from chunk `kept` on, stay until those of
// the tile after the next one come. Chunks are added up in one order by all kernels of a GPU with the same
// instructions, whose scores are the same to the bit: what is rounded in a statistic is rounded alike where
// weights are taken from it. On sm_90a those of positive pairs are made by other instructions than the rest.
template <class T, int WHOLE, int KEPT>
class Stream {
 public:
  static constexpr bool HAS_ROOM = false;  // for what columns have, in registers while products are made
  static constexpr int STAGES = WHOLE ? 3 : 2;
  static constexpr int BAND_CHUNK = BAND / TILE * TILE_CHUNK;
  static constexpr int STAGE = WHOLE ? WHOLE * TILE_CHUNK : BAND_CHUNK + TILE_CHUNK;
  static constexpr int RESIDENT = WHOLE ? WHOLE * BAND_CHUNK : 2 * KEPT * TILE_CHUNK;
  static constexpr size_t SHARED = RESIDENT + STAGES * STAGE;

  // Begins with the tiles [first, end) of the columns r for a band of x.
  __device__ __forceinline__ Stream(const Pairs& pairs, int band, int first, int end, int kept = 0)
      : x_(pairs.x),
        r_(pairs.r),
        fast_(pairs.task.fast),
        band_(band),
        end_(end),
        kept_(kept),
        tile_(first),
        ahead_tile_(first) {
    memory_ = shared_memory();
    if (WHOLE > 0 && first < end) {  // else nobody would wait for it
      copy(memory_, rows_of(x_, band * (BAND / TILE), 0), WHOLE * TILE_CHUNK);
      copy(memory_ + WHOLE * TILE_CHUNK, rows_of(x_, band * (BAND / TILE) + 1, 0), WHOLE * TILE_CHUNK);
    }
    for (int k = 0; k < STAGES - 1; k++) look_ahead();
  }

  // The products of the warp's rows with the next tile; released: its columns are not needed for more.
  __device__ __forceinline__ void next(Scores& scores, bool released = false) {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
      for (int e = 0; e < 4; e++) scores[f][e] = 0.0f;
    const int tile_rows = warp_of() * WARP_ROWS, half = tile_rows / TILE, begin = tile_rows % TILE * CHUNK;
    if constexpr (WHOLE > 0) {
      arrive();
#pragma unroll 1
      for (int c = 0; c < WHOLE; c++)
        add_scores<T>(scores, memory_ + (half * WHOLE + c) * TILE_CHUNK + begin, columns(c), fast_);
    } else {
      for (int c = 0; c < x_.chunks; c++) {
        arrive();
        add_scores<T>(scores, stage(stage_) + half * TILE_CHUNK + begin,
                      is_kept(c) ? columns(c - kept_) : single(stage_), fast_);
      }
    }
  }

  // Adds to sums the columns of the tile at hand, of chunks that are kept, times weights; turns these into
  // the products with the next tile, if there is one. Chunks that are kept beyond those of a row hold
  // anything.
  template <int N>
  __device__ __forceinline__ void advance(Scores& scores, float (&sums)[N][4]) {
    add_weighted<T>(sums, scores, columns(0), fast_);
    if (++tile_ < end_) next(scores);
  }

  // Ends the use of shared memory, which another stream may take then.
  __device__ __forceinline__ void end() const {
    await_copies<0>();
    __syncthreads();
  }

 private:
  // A chunk of the columns of the tile at hand: of all, or of those that are kept.
  __device__ __forceinline__ const char* columns(int c) const {
    return WHOLE ? stage(stage_) + c * TILE_CHUNK : kept(tile_, c);
  }
  __device__ __forceinline__ char* kept(int tile, int c) const {
    return memory_ + (tile % 2 * KEPT + c) * TILE_CHUNK;
  }

  __device__ __forceinline__ char* stage(int k) const { return memory_ + RESIDENT + k * STAGE; }
  __device__ __forceinline__ char* single(int k) const { return stage(k) + BAND_CHUNK; }
  __device__ __forceinline__ bool is_kept(int c) const { return c >= kept_ && c < kept_ + KEPT; }

  __device__ __forceinline__ static const char* rows_of(const dml_side& side, int tile, int chunk) {
    return static_cast<const char*>(side.rows) + (int64_t(tile) * side.chunks + chunk) * TILE_CHUNK;
  }

  __device__ __forceinline__ static void copy(char* to, const char* from, int bytes) {
    for (int at = int(threadIdx.x) * UNIT; at < bytes; at += THREADS * UNIT) copy_unit(to + at, from + at);
  }

  // Waits for the step at hand, and sends for one that lies ahead.
  __device__ __forceinline__ void arrive() {
    await_copies<STAGES - 2>();
    __syncthreads();
    stage_ = (stage_ + 1) % STAGES;
    look_ahead();
  }

  __device__ __forceinline__ void look_ahead() {
    if (ahead_tile_ < end_) {
      if constexpr (WHOLE > 0) {
        copy(stage(ahead_stage_), rows_of(r_, ahead_tile_, 0), WHOLE * TILE_CHUNK);
        ahead_tile_++;
      } else {
        const int c = ahead_chunk_;
        char* const to = stage(ahead_stage_);
        for (int k = 0; k < BAND / TILE; k++)
          copy(to + k * TILE_CHUNK, rows_of(x_, band_ * (BAND / TILE) + k, c), TILE_CHUNK);
        copy(is_kept(c) ? kept(ahead_tile_, c - kept_) : single(ahead_stage_), rows_of(r_, ahead_tile_, c),
             TILE_CHUNK);
        if (++ahead_chunk_ == x_.chunks) ahead_chunk_ = 0, ahead_tile_++;
      }
    }
    ahead_stage_ = (ahead_stage_ + 1) % STAGES;
    end_copies();
  }

  const dml_side& x_;
  const dml_side& r_;
  const bool fast_;
  const int band_, end_, kept_;
  int tile_, ahead_tile_, ahead_chunk_ = 0, ahead_stage_ = 0, stage_ = STAGES - 1;
  char* memory_;
};

// Tiles of columns, [first, end).
struct Tiles {
  int first, end;

  __device__ __forceinline__ Tiles(int first, int end) : first(first), end(end) {}

  // Those that a part of the columns has.
  __device__ __forceinline__ Tiles(const Pairs& pairs, int select, int band, int split, int splits) {
    const int tiles = tiles_of(pairs.r);
    first = int(int64_t(tiles) * split / splits);
    end = int(int64_t(tiles) * (split + 1) / splits);
    if (select != DML_POSITIVE) return;
    const Span rows(pairs.x, band * BAND, BAND);
    first = max(first, rows.low / TILE);
    end = max(first, min(end, (rows.high + TILE - 1) / TILE));
  }
};

}  // namespace dml
