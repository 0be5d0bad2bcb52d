// Statistics of rows and losses of all of them: what lies between the passes over the pairs.
#include "statistics.h"

#include "triangle.h"

namespace dml {
namespace {

constexpr int ALL = 1024;  // threads of a block that sees all rows
constexpr float SAFE_SPAN =
    100.0f;  // powers of two that statistics may span where one exponential serves a pair

// exp2(top) total
struct Partial {
  float top, total;
};

// Combines the values of all threads of a block; each gets the result.
template <class N, class F>
__device__ __forceinline__ N over_block(N value, const F& combined) {
  N* const of_warps = reinterpret_cast<N*>(shared_memory());
  for (int apart = WARP / 2; apart; apart /= 2)
    value = combined(value, __shfl_xor_sync(ALL_LANES, value, apart));
  __syncthreads();
  if (lane_of() == 0) of_warps[warp_of()] = value;
  __syncthreads();
  value = of_warps[0];
  for (int warp = 1; warp < ALL / WARP; warp++) value = combined(value, of_warps[warp]);
  return value;
}

// One thread of a warp a position: a warp of the block adds up some of the parts, the first one them all.
__global__ void combine_kernel(DML_ARGUMENT Pairs pairs, const float* tops, const float* totals,
                               const float* slots, int count, float* value, float* result) {
  const dml_side& x = pairs.x;
  const int64_t position = int64_t(blockIdx.x) * WARP + lane_of();
  const bool exponential = pairs.task.reduce == DML_LOGSUMEXP;
  float top = exponential ? NOTHING : 0.0f, total = 0.0f;
  if (slots && Reach(pairs).is_short()) {
    top = Reach(pairs).high;
#pragma unroll 8
    for (int k = warp_of(); k < count; k += WARPS) total += slots[k * x.padded + position];
  } else {
    for (int k = warp_of(); k < pairs.task.splits && exponential; k += WARPS)
      top = max(top, tops[k * x.padded + position]);
    for (int k = warp_of(); k < pairs.task.splits; k += WARPS) {
      const int64_t at = k * x.padded + position;
      total += exponential ? totals[at] * exp2(tops[at] - top) : totals[at];
    }
  }
  auto* const of_warps = reinterpret_cast<Partial*>(shared_memory());
  of_warps[threadIdx.x] = {top, total};
  __syncthreads();
  if (warp_of() != 0) return;
  for (int w = 1; w < WARPS; w++) top = max(top, of_warps[w * WARP + lane_of()].top);
  total = 0.0f;
  for (int w = 0; w < WARPS; w++) {
    const Partial part = of_warps[w * WARP + lane_of()];
    total += part.total * exp2(part.top - top);
  }
  const bool some = !exponential || total > 0.0f;
  const float found = exponential && some ? top + log2(total) : total;
  if (value) value[position] = some ? found : NOTHING;
  if (result && position < x.given.n)
    result[given_row(x, int(position))] = (!exponential ? found
                                           : some       ? found * LN2
                                                        : -INFINITY) +
                                          poison_of(x, pairs.r);
}

// Brings statistics, as natural logarithms or sums, and their gradients from the order of rows to that of
// positions.
__global__ void given_kernel(DML_ARGUMENT dml_side side, bool exponential, const float* given_value,
                             const float* given_grad, float* value, float* grad) {
  const int64_t position = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (position >= side.padded) return;
  const bool there = position < side.given.n;
  const int64_t row = there ? given_row(side, int(position)) : 0;
  const bool some = there && !(exponential && given_value[row] == -INFINITY);
  if (exponential) value[position] = some ? given_value[row] * LOG2E : NOTHING;
  grad[position] = some ? given_grad[row] : 0.0f;
}

// For both sides: gradients times exp2(middle - statistic), and what the middle is.
__global__ void factors_kernel(dml_stats xs, int64_t x_padded, dml_stats rs, int64_t r_padded,
                               float* x_factor, float* r_factor, float* middle) {
  const auto each = [&](const auto& f) {
    for (int64_t at = threadIdx.x; xs.value && at < x_padded; at += ALL) f(xs, x_factor, at);
    for (int64_t at = threadIdx.x; rs.value && at < r_padded; at += ALL) f(rs, r_factor, at);
  };
  float lowest = INFINITY, highest = -INFINITY;
  each([&](const dml_stats& stats, float*, int64_t at) {
    const float value = stats.value[at];
    if (!(value > NOTHING / 2)) return;
    lowest = min(lowest, value);
    highest = max(highest, value);
  });
  lowest = over_block(lowest, [](float a, float b) { return min(a, b); });
  highest = over_block(highest, [](float a, float b) { return max(a, b); });
  const float centre = lowest <= highest ? (lowest + highest) / 2 : 0.0f;
  if (threadIdx.x == 0) middle[0] = centre, middle[1] = highest - lowest > SAFE_SPAN;
  each([&](const dml_stats& stats, float* factor, int64_t at) {
    const float value = stats.value[at];
    if (factor) factor[at] = value > NOTHING / 2 ? stats.grad[at] * exp2(centre - value) : 0.0f;
  });
}

// Half the mean of the terms of all positive pairs.
__global__ void mean_kernel(DML_ARGUMENT dml_side x, DML_ARGUMENT dml_side r, const float* squares,
                            const int* counts, float* loss, float* share) {
  double sum = 0.0;
  int64_t count = 0;
  for (int64_t at = threadIdx.x; at < x.padded; at += ALL) sum += squares[at], count += counts[at];
  sum = over_block(sum, [](double a, double b) { return a + b; });
  count = over_block(count, [](int64_t a, int64_t b) { return a + b; });
  if (threadIdx.x) return;
  const double pairs = double(max(count, int64_t(1)));
  *share = float(1.0 / pairs);
  *loss = float(0.5 * sum / pairs) + poison_of(x, r);
}

Launch for_positions(int64_t padded, void* stream) {
  return {dim3{unsigned((padded + THREADS - 1) / THREADS), 1, 1}, dim3{THREADS, 1, 1}, 0, stream};
}

Launch for_all(void* stream) {
  return {dim3{1, 1, 1}, dim3{ALL, 1, 1}, ALL / WARP * sizeof(double), stream};
}

}  // namespace

Status combine(const Pairs& pairs, const float* tops, const float* totals, const float* slots, int count,
               float* value, float* result, void* stream) {
  const Launch how{dim3{unsigned(pairs.x.padded / WARP), 1, 1}, dim3{THREADS, 1, 1},
                   THREADS * sizeof(Partial), stream};
  return launch(combine_kernel, how, pairs, tops, totals, slots, count, value, result);
}

}  // namespace dml

using namespace dml;

int dml_cuda_order_statistics(const dml_side* side, const dml_task* task, const float* given_value,
                              const float* given_grad, float* value, float* grad, void* stream) {
  const bool exponential = task->reduce == DML_LOGSUMEXP;
  return launch(given_kernel, for_positions(side->padded, stream), *side, exponential, given_value,
                given_grad, value, grad);
}

int dml_cuda_factors(const dml_side* x, const dml_side* r, const dml_stats* xs, const dml_stats* rs,
                     float* x_factor, float* r_factor, float* middle, void* stream) {
  return launch(factors_kernel, for_all(stream), *xs, x->padded, *rs, r->padded, x_factor, r_factor, middle);
}

int dml_cuda_mean(const dml_side* x, const dml_side* r, const float* squares, const int32_t* counts,
                  float* loss, float* share, void* stream) {
  return launch(mean_kernel, for_all(stream), *x, *r, squares, counts, loss, share);
}
