// Exponentials of rows with classes on sm_90a, and their sums: what the normalised softmax takes of each.
#include "blocks.h"
#include "columns_sm90.h"

namespace dml {
namespace {

constexpr int SHARING = 2;  // blocks that share classes, as those of weights_sm90.cu do

// What classes have besides. They enter the products with exponentials as they are, unless their inverse
// lengths are far from 1: then times the power of two of these, and exponentials have the mantissa alone.
struct Lengths {
  const float* inverse;
  float far;
  float *by, *kept_by;

  __device__ __forceinline__ void lay_out(int64_t row, bool there) const {
    const float value = there ? inverse[row] : 0.0f;
    const bool is_far = value > far || (value > 0.0f && value < 1.0f / far);
    by[row] = value;
    kept_by[row] = is_far ? bits_to_float((float_to_bits(value) & 0x7fffffu) | 0x3f800000u) : value;
  }
};

// One warp a row. Classes take the places of a tile that have eight of them beside each other in a thread.
template <bool WHOLE>
__global__ void lay_out_kernel(DML_ARGUMENT dml_rows given, DML_ARGUMENT Lengths lengths, int chunks,
                               char* tiles) {
  const int64_t row = int64_t(blockIdx.x) * WARPS + warp_of();
  const int in_tile = int(row % TILE), place = lengths.inverse ? column_at(in_tile) : in_tile;
  if (lengths.inverse && lane_of() == 0) lengths.lay_out(row, row < given.n);
  char* const tile = tiles + row / TILE * chunks * TILE_CHUNK;
  for (int unit = lane_of(); unit < chunks * UNITS; unit += WARP) {
    char* const to = tile + unit / UNITS * TILE_CHUNK + place_of(place, unit % UNITS);
    const bool there = row < given.n;
    *reinterpret_cast<Unit<bfloat16>*>(to) =
        there ? unit_of<bfloat16, WHOLE>(given, row, unit) : Unit<bfloat16>{};
  }
}

#ifdef DML_HOPPER
// What the columns of a thread have of values by class.
class OfClasses {
 public:
  OfClasses() = default;
  __device__ __forceinline__ OfClasses(const float* values, int tile) {
    const auto* const first = reinterpret_cast<const Four*>(values + tile * TILE + lane_of() % 4 * 8);
#pragma unroll
    for (int k = 0; k < FRAGMENTS / 2; k++) fours_[k] = first[k / 2 * (IN_LINE / 4) + k % 2];
  }

  __device__ __forceinline__ float operator()(int f, int e) const {
    return fours_[f / 2].at[f % 2 * 2 + e % 2];
  }

 private:
  struct alignas(16) Four {
    float at[4];
  };
  Four fours_[FRAGMENTS / 2];
};

// 16 rows, two of a thread. RUNNING: each has the greatest exponent so far taken from all.
template <bool RUNNING>
class RowExponentials {
 public:
  __device__ __forceinline__ RowExponentials(const dml_exponentials& how, int band) : how_(how) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      row_[h] = band * BAND + warp_of() * WARP_ROWS + row_of(h * 2);
      const bool there = row_[h] < how.n;
      by_row_[h] = there ? how.by_row[row_[h]] : 0.0f;
      top_[h] = RUNNING ? NOTHING : there && how.shift ? how.shift[row_[h]] : 0.0f;
      label_[h] = there ? int(how.labels[row_[h]] - how.first) : -1;
    }
  }

  // What the classes of a tile have, before its scores are taken.
  __device__ __forceinline__ void load(int tile) {
    by_class_ = OfClasses(how_.by_class, tile);
    if (how_.kept) kept_by_ = OfClasses(how_.kept_by, tile);
  }

  // Turns the scores of the tile that was loaded into exponentials, and adds these up.
  __device__ __forceinline__ void take(Scores& scores, int tile) {
    each_score([&](int f, int e) {
      const float score = scores[f][e] * by_row_[e / 2], by = by_class_(f, e);
      scores[f][e] = RUNNING ? score * by : fmaf(score, by, -top_[e / 2]);
    });
    if (const uint32_t others = left_out(tile)) {
#pragma unroll
      for (int k = 0; k < FRAGMENTS * 4; k++)
        if (others >> k & 1) scores[k / 4][k % 4] = 2 * NOTHING;  // less than no top so far
    }
    if constexpr (RUNNING) raise(scores);
    float of_tile[2] = {};  // a sum of sums: thousands of terms, one after another, would lose digits
    each_score([&](int f, int e) {
      scores[f][e] = exp2(RUNNING ? scores[f][e] - top_[e / 2] : scores[f][e]);
      of_tile[e / 2] += scores[f][e];
    });
    for (int h = 0; h < 2; h++) total_[h] += of_tile[h];
  }

  // Writes the exponentials of the tile over the lengths of its classes.
  __device__ __forceinline__ void write(const Scores& scores, int tile) const {
    auto* const kept = static_cast<bfloat16*>(how_.kept) + tile * TILE;
    store_in_lines([&](int h) { return kept + row_[h] * how_.pitch; },
                   [&](int h, int f) {
                     return to_bfloat16s(scores[f][h * 2] * kept_by_(f, 0),
                                         scores[f][h * 2 + 1] * kept_by_(f, 1));
                   });
  }

  // Stores the logarithm of each row's sum for a part of the classes.
  __device__ __forceinline__ void store(int part) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float top = top_[h], total = total_[h];
      if constexpr (RUNNING) {
        for (int by = 1; by < 4; by *= 2) top = max(top, __shfl_xor_sync(ALL_LANES, top, by));
        total *= exp2(top_[h] - top);
      }
      total = over_row(total);
      if (lane_of() % 4 == 0) how_.sums[part * how_.padded + row_[h]] = LN2 * (top + log2(total));
    }
  }

 private:
  // Which pairs of the thread are no others: a row with its own class, and what is no class.
  __device__ __forceinline__ uint32_t left_out(int tile) const {
    const int first = tile * TILE;
    uint32_t found = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int at = label_[h] - first;
      if (at >= 0 && at < TILE && at % IN_LINE / 8 == lane_of() % 4)
        found |= 1u << ((at / IN_LINE * 4 + at % 8 / 2) * 4 + h * 2 + at % 2);
    }
    if (first + TILE > how_.m)
      each_score([&](int f, int e) {
        const int at = f / 4 * IN_LINE + lane_of() % 4 * 8 + f % 4 * 2 + e % 2;
        if (first + at >= how_.m) found |= 1u << (f * 4 + e);
      });
    return found;
  }

  // Takes up the greatest exponents of a tile.
  __device__ __forceinline__ void raise(const Scores& exponents) {
    float tops[2] = {top_[0], top_[1]};
    each_score([&](int f, int e) { tops[e / 2] = max(tops[e / 2], exponents[f][e]); });
#pragma unroll
    for (int h = 0; h < 2; h++) total_[h] *= exp2(top_[h] - tops[h]), top_[h] = tops[h];
  }

  const dml_exponentials& how_;
  int row_[2], label_[2];
  float by_row_[2], top_[2], total_[2] = {};
  OfClasses by_class_, kept_by_;
};
#endif

template <int CHUNKS, bool RUNNING>
__global__ void __launch_bounds__(BLOCK, 1) exponentials_sm90_kernel(DML_ARGUMENT dml_exponentials how) {
#ifdef DML_HOPPER
  // of an odd number of bands the last one is looked at twice, with the same result
  const int band = min(int(blockIdx.x), int(how.padded / BAND) - 1), part = blockIdx.y;
  const int64_t tiles = how.padded_m / TILE;
  const Tiles some(int(tiles * part / gridDim.y), int(tiles * (part + 1) / gridDim.y));
  with_columns<CHUNKS, SHARING>(how.rows, how.classes, band, some, [&](auto& columns) {
    RowExponentials<RUNNING> rows(how, band);
    for (int tile = some.first; tile < some.end; tile++) {
      Scores scores;
      rows.load(tile);
      columns.next(scores, true);
      rows.take(scores, tile);
      if (how.kept) rows.write(scores, tile);
    }
    if (how.sums) rows.store(part);
  });
#else
  __trap();
#endif
}

template <int CHUNKS, bool RUNNING>
Status start(const dml_exponentials& how, void* stream) {
  const unsigned bands = unsigned(how.padded / BAND);
  Launch launched{dim3{(bands + SHARING - 1) / SHARING * SHARING, unsigned(how.parts), 1}, dim3{BLOCK, 1, 1},
                  sizeof(Stages<CHUNKS>), stream, SHARING};
  return launch(exponentials_sm90_kernel<CHUNKS, RUNNING>, launched, how);
}

// Widths of powers of two serve: others are padded.
template <bool RUNNING, int CHUNKS = 1>
Status by_width(const dml_exponentials& how, void* stream) {
  if (how.chunks == CHUNKS) return start<CHUNKS, RUNNING>(how, stream);
  if constexpr (CHUNKS < MOST_CHUNKS) return by_width<RUNNING, CHUNKS * 2>(how, stream);
  return INVALID;
}

}  // namespace
}  // namespace dml

using namespace dml;

int dml_cuda_exponentials_fit(void) {
  Gpu gpu;
  return HAS_SM90A && find_gpu(gpu) == 0 && gpu.major == 9;
}

int dml_cuda_lay_out(const dml_rows* given, int64_t padded, int32_t chunks, void* tiles, const float* inverse,
                     float far, float* by_class, float* kept_by, void* stream) {
  const Launch how{dim3{unsigned(padded / WARPS), 1, 1}, dim3{THREADS, 1, 1}, 0, stream};
  const bool whole = comes_in_units<bfloat16>(*given, DML_BFLOAT16);
  return launch(whole ? lay_out_kernel<true> : lay_out_kernel<false>, how, *given,
                Lengths{inverse, far, by_class, kept_by}, chunks, static_cast<char*>(tiles));
}

int dml_cuda_exponentials(const dml_exponentials* how, int running, void* stream) {
  return running ? by_width<true>(*how, stream) : by_width<false>(*how, stream);
}
