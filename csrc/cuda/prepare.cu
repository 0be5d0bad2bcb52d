// Rows as they were given, put in their places, centred, rounded and laid out in tiles.
#include "pairs.h"

namespace dml {
namespace {

// One warp a row. WHOLE: of rows that come in units. centre: of float32 rows, may be missing.
template <class T, bool WHOLE>
__global__ void prepare_kernel(DML_ARGUMENT dml_side side, bool fast, const float* centre) {
  const int64_t position = int64_t(blockIdx.x) * WARPS + warp_of();
  const bool there = position < side.given.n;
  const int64_t row = there ? given_row(side, int(position)) : 0;
  char* const tile = static_cast<char*>(side.rows) + position / TILE * side.chunks * TILE_CHUNK;
  float norm = 0.0f;
  for (int unit = lane_of(); unit < side.chunks * UNITS; unit += WARP) {
    Unit<T> values = {};
    if (there) values = unit_of<T, WHOLE>(side.given, row, unit);
#pragma unroll
    for (int e = 0; e < in_unit<T>; e++) {
      T& value = values.at[e];
      if constexpr (std::is_same_v<T, float>) {
        const int64_t k = int64_t(unit) * in_unit<T> + e;
        if (centre && there && k < side.given.d) value -= centre[k];
        if (fast) value = to_tf32(value);
      }
      norm += to_float(value) * to_float(value);
    }
    char* const place = tile + unit / UNITS * TILE_CHUNK + place_of(int(position % TILE), unit % UNITS);
    *reinterpret_cast<Unit<T>*>(place) = values;
  }
  for (int by = 1; by < WARP; by *= 2) norm += __shfl_xor_sync(ALL_LANES, norm, by);
  if (lane_of() != 0) return;
  side.norm[position] = norm;
  // of a number that is not negative the bits are in its order, those of NaN above all
  if (!(norm <= latest(side.largest)))
    atomicMax(reinterpret_cast<int*>(side.largest), int(float_to_bits(norm) & 0x7fffffffu));
}

// One warp a row: its position among rows in the order of their labels is how many come before it.
__global__ void order_kernel(const int64_t* labels, int n, const int64_t* others, int m, int64_t* order,
                             int* low, int* high) {
  const int row = int(blockIdx.x) * WARPS + warp_of();
  if (row >= n) return;
  const int64_t label = labels[row];
  int before = 0, lower = 0, same = 0;
  if (others)
    for (int j = lane_of(); j < n; j += WARP) before += labels[j] < label || (labels[j] == label && j < row);
  for (int j = lane_of(); j < m; j += WARP) {
    const int64_t other = others ? others[j] : labels[j];
    lower += other < label;
    same += other == label;
    if (!others) before += other < label || (other == label && j < row);
  }
  for (int by = 1; by < WARP; by *= 2) {
    before += __shfl_xor_sync(ALL_LANES, before, by);
    lower += __shfl_xor_sync(ALL_LANES, lower, by);
    same += __shfl_xor_sync(ALL_LANES, same, by);
  }
  if (lane_of() == 0) order[before] = row, low[before] = lower, high[before] = lower + same;
}

template <class T>
Status prepare(const dml_side& side, const dml_task& task, const float* centre, void* stream) {
  const Launch how{dim3{unsigned(side.padded / WARPS), 1, 1}, dim3{THREADS, 1, 1}, 0, stream};
  const auto kernel =
      comes_in_units<T>(side.given, task.dtype) ? prepare_kernel<T, true> : prepare_kernel<T, false>;
  return launch(kernel, how, side, task.fast != 0, centre);
}

}  // namespace
}  // namespace dml

int dml_cuda_prepare(const dml_side* side, const dml_task* task, const float* centre, void* stream) {
  using namespace dml;
  return by_dtype(task->dtype,
                  [&](auto zero) { return prepare<decltype(zero)>(*side, *task, centre, stream); });
}

int dml_cuda_order(const int64_t* labels, int64_t n, const int64_t* others, int64_t m, int64_t* order,
                   int32_t* low, int32_t* high, void* stream) {
  using namespace dml;
  const Launch how{dim3{unsigned((n + WARPS - 1) / WARPS), 1, 1}, dim3{THREADS, 1, 1}, 0, stream};
  return launch(order_kernel, how, labels, int(n), others, int(m), order, low, high);
}

int dml_cuda_find_code(void) {
  return dml::find_code(dml::prepare_kernel<float, true>);
}
