// The lifted structured loss of a batch, and its gradient, in one launch: nothing is computed twice.
//
// A block owns ROWS rows, the last one of the batch in place of those beyond it. Their distances to all rows,
// and then the weights, stay in its shared memory:
//
//   distances                                                         (n, ROWS)
//   statistic L_i                        to all blocks: a barrier
//   hinges of the positive pairs, g_i    to all blocks: a barrier
//   weights, gradient
//
// Both passes over the rows take differences, so that nothing cancels where rows nearly coincide.
#include <atomic>

#include "rows.h"
#ifndef DML_EMULATED
#include <cooperative_groups.h>  // slow to compile, and for the barrier of a grid alone
#endif

namespace dml {
namespace {

constexpr int PARTS = 8;            // threads that share a column, a quad each of every chunk
constexpr int SPAN = 4 * PARTS;     // components that they take at a time
constexpr int COLUMNS = 4;          // that a thread has in registers
constexpr int STEP = WARP / PARTS;  // columns from one of them to the next
constexpr int WARP_SWEEP = COLUMNS * STEP, SWEEP = WARPS * WARP_SWEEP;  // columns at a time
constexpr int SUMS = 3;  // the most that are taken over a row at once
constexpr int MAX_CLUSTER = 16, MAX_GPUS = 64, MAX_N = 2048, MAX_D = 512;

__host__ __device__ constexpr int rounded_up(int size, int unit) {
  return (size + unit - 1) / unit * unit;
}

__host__ __device__ constexpr int quads_of(int d) {
  return (d + 3) / 4;
}

// All blocks of a cooperative launch meet here, as those of a cluster do at theirs.
__device__ __forceinline__ void grid_barrier() {
#ifdef DML_EMULATED
  emulation::wait(emulation::machine().everyone);
#else
  cooperative_groups::this_grid().sync();
#endif
}

// What a row tells all blocks after its hinges are known.
struct alignas(16) Summary {
  float nearest;  // distance of a negative
  float grad;     // g_i e^(margin - nearest - L_i) up to the share of a pair; NaN without negatives
  float squares, positives;
};

template <class X>
struct Batch {
  X x;
  const int64_t* labels;
  float margin;
  float* loss;
  float* d_rows;
  Summary* summaries;  // (n,)
  float* statistics;   // (n,)
  bool is_cluster;     // the blocks are one cluster

  __device__ void meet() const {
    if (is_cluster)
      cluster_barrier();
    else
      grid_barrier();
  }
};

// The shared memory of a block. A thread holds one row, and every THREADS / ROWS-th column, of a strip.
template <int ROWS>
struct Shared {
  int width, columns, padded, strip_columns;

  __host__ __device__ Shared(int n, int d)
      : width(rounded_up(d, SPAN)),
        columns(rounded_up(n, 4)),
        padded(rounded_up(n, COLUMNS * (THREADS / quads_of(d)))),
        strip_columns(padded > 4 * THREADS ? padded : 4 * THREADS) {}

  __device__ float* own() const { return reinterpret_cast<float*>(shared_memory()); }  // (ROWS, width)
  // (padded, ROWS): distances, those of equal labels with a minus; weights; sums of the gradient.
  __device__ float* strip() const { return own() + ROWS * width; }
  __device__ float* statistics() const { return strip() + ROWS * strip_columns; }  // (n,)
  __device__ float* nearest() const { return statistics() + columns; }             // (n,)
  __device__ float* grads() const { return nearest() + columns; }                  // (n,)
  __device__ float* partial() const { return grads() + columns; }                  // (WARPS, SUMS, ROWS)
  __host__ __device__ size_t bytes() const {
    return sizeof(float) * (ROWS * (width + strip_columns + WARPS * SUMS) + 3 * columns);
  }
};

__device__ __forceinline__ bool has_minus(float value) {
  return float_to_bits(value) >> 31;
}

__device__ __forceinline__ float exponential(float x) {
  return exp2(x * LOG2E);
}

__device__ __forceinline__ float sum_of(float a, float b) {
  return a + b;
}

__device__ __forceinline__ float least_of(float a, float b) {
  return fminf(a, b);
}

// Values of the threads whose numbers are the same modulo ROWS, combined; all of these get them.
template <int ROWS, int COUNT>
__device__ __forceinline__ void over_row(float (&values)[COUNT], float* partial,
                                         float (*combined)(float, float) = sum_of) {
  const int lane = threadIdx.x % WARP, row = threadIdx.x % ROWS;
#pragma unroll
  for (int k = 0; k < COUNT; k++) {
#pragma unroll
    for (int apart = ROWS; apart < WARP; apart *= 2)
      values[k] = combined(values[k], __shfl_xor_sync(ALL_LANES, values[k], apart));
    if (lane < ROWS) partial[(threadIdx.x / WARP * COUNT + k) * ROWS + row] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < COUNT; k++) {
    values[k] = partial[k * ROWS + row];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++)
      values[k] = combined(values[k], partial[(warp * COUNT + k) * ROWS + row]);
  }
  __syncthreads();
}

// Adds up the values of the threads that share a column; each keeps ROWS / PARTS of them, in order.
template <int APART = PARTS / 2, int ROWS>
__device__ __forceinline__ void over_parts(float (&values)[ROWS]) {
  constexpr int HALF = ROWS / PARTS * APART;
  const bool upper = threadIdx.x & APART;
#pragma unroll
  for (int r = 0; r < HALF; r++) {
    const float given = upper ? values[r] : values[r + HALF];
    const float kept = upper ? values[r + HALF] : values[r];
    values[r] = kept + __shfl_xor_sync(ALL_LANES, given, APART);
  }
  if constexpr (APART > 1) over_parts<APART / 2>(values);
}

template <int ROWS, class X>
__device__ void load_own(const X& x, const Shared<ROWS>& shared, int first) {
  const int quads = shared.width / 4;
  for (int k = threadIdx.x; k < ROWS * quads; k += THREADS) {
    const auto quad = x.load(x.row(first + k / quads), k % quads * 4);
    reinterpret_cast<Quad<float>*>(shared.own())[k] = to_float(quad);
  }
}

template <int ROWS, class X>
__device__ void keep_distances(const Batch<X>& batch, const Shared<ROWS>& shared, int first) {
  constexpr int KEPT = ROWS / PARTS;
  using T = typename X::T;
  const X& x = batch.x;
  const int lane = threadIdx.x % WARP, warp_column = threadIdx.x / WARP * WARP_SWEEP;
  const int own_row = lane % PARTS * KEPT, own_k = lane % PARTS * 4;
  int64_t label[KEPT];
  for (int r = 0; r < KEPT; r++) label[r] = batch.labels[x.clamped(first + own_row + r)];
  const T* rows[COLUMNS];
  Quad<T> coming[COLUMNS];
  const auto load = [&](int k) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) coming[c] = x.load(rows[c], k);
  };
  const auto start = [&](int j) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) rows[c] = x.row(j + c * STEP);
    load(own_k);
  };
  start(warp_column + lane / PARTS);
  __syncthreads();
  for (int sweep = warp_column; sweep < x.n; sweep += SWEEP) {
    const int j = sweep + lane / PARTS;
    float squared[COLUMNS][ROWS] = {};
#pragma unroll 2
    for (int span = 0; span < shared.width; span += SPAN) {
      Quad<float> column[COLUMNS];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) column[c] = to_float(coming[c]);
      if (span + SPAN < shared.width)
        load(span + SPAN + own_k);
      else
        start(j + SWEEP);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const auto own =
            *reinterpret_cast<const Quad<float>*>(shared.own() + r * shared.width + span + own_k);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const float difference = own.at[e] - column[c].at[e];
            squared[c][r] = fmaf(difference, difference, squared[c][r]);
          }
      }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
      over_parts(squared[c]);
      const int column = j + c * STEP;
      if (column < x.n) {
        const int64_t column_label = batch.labels[column];
#pragma unroll
        for (int r = 0; r < KEPT; r++) {
          const float distance = sqrtf(squared[c][r]);
          shared.strip()[column * ROWS + own_row + r] = label[r] == column_label ? -distance : distance;
        }
      }
    }
  }
  __syncthreads();
}

// Distance of the nearest negative of the row of a thread, and the sum of exp(that distance - D) over its
// negatives: 0 without any, NaN where the row is not finite, as its distance to itself then is.
struct Negatives {
  float nearest, sum;
};

template <int ROWS>
__device__ Negatives over_negatives(const Shared<ROWS>& shared, int i, int n) {
  const int row = threadIdx.x % ROWS;
  float nearest[1] = {INFINITY}, sum[1] = {0.0f};
  for (int j = threadIdx.x / ROWS; j < n; j += THREADS / ROWS) {
    const float distance = shared.strip()[j * ROWS + row];
    if (!has_minus(distance)) nearest[0] = fminf(nearest[0], distance);
  }
  over_row<ROWS>(nearest, shared.partial(), least_of);
  for (int j = threadIdx.x / ROWS; j < n; j += THREADS / ROWS) {
    const float distance = shared.strip()[j * ROWS + row];
    if (j == i)
      sum[0] += distance;
    else if (!has_minus(distance))
      sum[0] += exponential(nearest[0] - distance);
  }
  over_row<ROWS>(sum, shared.partial());
  return {nearest[0], sum[0]};
}

__device__ __forceinline__ float log_add(float a, float b) {
  return fmaxf(a, b) + LN2 * log2(1.0f + exponential(-fabsf(a - b)));
}

// Sums over the positive pairs of each row, whose distances are replaced with their weights, with a minus.
// All are NaN where some row is not finite.
template <int ROWS>
__device__ Summary over_positives(const Shared<ROWS>& shared, const Negatives& negatives, float statistic,
                                  const float* statistics, int i, int n) {
  for (int j = threadIdx.x; j < n; j += THREADS) shared.statistics()[j] = statistics[j];
  __syncthreads();
  const int row = threadIdx.x % ROWS;
  float sums[SUMS] = {};
  for (int j = threadIdx.x / ROWS; j < n; j += THREADS / ROWS) {
    const float other = shared.statistics()[j];
    sums[0] += 0.0f * other;
    float& kept = shared.strip()[j * ROWS + row];
    if (j == i || !has_minus(kept)) continue;
    const float hinge = fmaxf(log_add(statistic, other) - kept, 0.0f);
    sums[0] += hinge * hinge;
    sums[1] += hinge * reciprocal(1.0f + exponential(other - statistic));
    sums[2] += 1.0f;
    kept = kept != 0.0f ? hinge / kept : -0.0f;
  }
  over_row<ROWS>(sums, shared.partial());
  return {negatives.nearest, sums[1] / negatives.sum, sums[0], sums[2]};
}

// Replaces the distances of negative pairs with weights, and takes the minus from those of positive pairs.
// Those beyond are 0.
template <int ROWS>
__device__ void keep_weights(const Shared<ROWS>& shared, const Summary& own, int n) {
  for (int j = threadIdx.x / ROWS; j < shared.padded; j += THREADS / ROWS) {
    float& kept = shared.strip()[j * ROWS + threadIdx.x % ROWS];
    if (j >= n) {
      kept = 0.0f;
    } else if (has_minus(kept)) {
      kept = -kept;
    } else if (kept != 0.0f) {
      const float pull = own.grad * exponential(own.nearest - kept) +
                         shared.grads()[j] * exponential(shared.nearest()[j] - kept);
      kept = -pull / kept;
    }
  }
}

// d_i = share * sum over j of w_ij (x_i - x_j). A thread has four components of all rows, and some columns.
template <int ROWS, class X>
__device__ void write_gradient(const Batch<X>& batch, const Shared<ROWS>& shared, int first, float share) {
  using T = typename X::T;
  const X& x = batch.x;
  const int quads = quads_of(x.d), groups = THREADS / quads;
  const int group = threadIdx.x / quads, k = threadIdx.x % quads * 4;
  Quad<T> coming[COLUMNS];
  const auto start = [&](int j) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) coming[c] = x.load(x.row(j + c * groups), k);
  };
  start(group);
  __syncthreads();
  float sums[ROWS][4] = {};
  if (group < groups) {
    Quad<float> own[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      own[r] = *reinterpret_cast<const Quad<float>*>(shared.own() + r * shared.width + k);
#pragma unroll 2
    for (int j = group; j < x.n; j += COLUMNS * groups) {
      Quad<float> column[COLUMNS];
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) column[c] = to_float(coming[c]);
      start(j + COLUMNS * groups);
#pragma unroll
      for (int c = 0; c < COLUMNS; c++) {
        const float* weights = shared.strip() + (j + c * groups) * ROWS;
#pragma unroll
        for (int r = 0; r < ROWS; r += 4) {
          const auto weight = *reinterpret_cast<const Quad<float>*>(weights + r);
#pragma unroll
          for (int s = 0; s < 4; s++)
#pragma unroll
            for (int e = 0; e < 4; e++)
              sums[r + s][e] = fmaf(weight.at[s], own[r + s].at[e] - column[c].at[e], sums[r + s][e]);
        }
      }
    }
  }
  __syncthreads();
  auto* partial = reinterpret_cast<Quad<float>*>(shared.strip());  // (groups, ROWS, quads)
  if (group < groups)
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      partial[(group * ROWS + r) * quads + k / 4] = {{sums[r][0], sums[r][1], sums[r][2], sums[r][3]}};
  __syncthreads();
  for (int at = threadIdx.x; at < ROWS * x.d; at += THREADS) {
    const int r = at / x.d, component = at % x.d;
    float sum = 0.0f;
    for (int g = 0; g < groups; g++) sum += shared.strip()[(g * ROWS + r) * quads * 4 + component];
    if (first + r < x.n) batch.d_rows[int64_t(first + r) * x.d + component] = share * sum;
  }
}

template <int ROWS, class X>
__global__ __launch_bounds__(THREADS, 1) void one_pass_kernel(Batch<X> batch) {
  const Shared<ROWS> shared(batch.x.n, batch.x.d);
  const int n = batch.x.n, first = int(blockIdx.x) * ROWS, i = first + int(threadIdx.x) % ROWS;
  const bool tells = threadIdx.x < ROWS && i < n;

  load_own(batch.x, shared, first);
  keep_distances(batch, shared, first);
  const Negatives negatives = over_negatives(shared, i, n);
  const float statistic = negatives.sum > 0.0f ? batch.margin - negatives.nearest + LN2 * log2(negatives.sum)
                                               : NOTHING + negatives.sum;
  if (tells) batch.statistics[i] = statistic;
  batch.meet();

  const Summary own = over_positives(shared, negatives, statistic, batch.statistics, i, n);
  if (tells) batch.summaries[i] = own;
  batch.meet();

  float totals[2] = {};
  for (int j = threadIdx.x; j < n; j += THREADS) {
    const Summary other = batch.summaries[j];
    shared.nearest()[j] = other.nearest;
    shared.grads()[j] = other.grad;
    totals[0] += other.squares;
    totals[1] += other.positives;
  }
  over_row<1>(totals, shared.partial());
  const float share = 1.0f / fmaxf(totals[1], 1.0f);  // of one of two that a positive pair counts as
  if (first + threadIdx.x == 0) *batch.loss = 0.5f * share * totals[0];
  if (!batch.d_rows) return;
  keep_weights(shared, own, n);
  write_gradient(batch, shared, first, 2.0f * share + 0.0f * totals[0]);
}

// The fewest rows of a block with which each has a multiprocessor of its own and enough shared memory; 0
// where there are none.
int rows_of_block(int64_t n, int64_t d, const Gpu& gpu) {
  if (n < 1 || n > MAX_N || d < 1 || d > MAX_D) return 0;
  const auto fits = [&](int rows, size_t shared) {
    return n <= int64_t(rows) * gpu.multiprocessors && shared <= gpu.shared;
  };
  if (fits(8, Shared<8>(int(n), int(d)).bytes())) return 8;
  if (fits(16, Shared<16>(int(n), int(d)).bytes())) return 16;
  return 0;
}

// Whether the GPU runs MAX_CLUSTER blocks as one cluster. It is asked once.
template <int ROWS, class X>
bool has_clusters(const Gpu& gpu) {
  enum Answer { UNKNOWN, NO, YES };
  static std::atomic<Answer> known[MAX_GPUS];
  if (gpu.major < 9 || gpu.id >= MAX_GPUS) return false;
  if (known[gpu.id] == UNKNOWN) {
    Launch how;
    how.grid = dim3{MAX_CLUSTER};
    how.block = dim3{THREADS};
    how.shared = Shared<ROWS>(MAX_CLUSTER * ROWS, MAX_D).bytes();
    how.cluster = MAX_CLUSTER;
    const auto kernel = one_pass_kernel<ROWS, X>;
    known[gpu.id] = has_code_since(kernel, 9) && cluster_fits(kernel, how) ? YES : NO;
  }
  return known[gpu.id] == YES;
}

template <int ROWS, class X>
Status run(Batch<X> batch, const Gpu& gpu, void* stream) {
  int blocks = rounded_up(batch.x.n, ROWS) / ROWS;
  batch.is_cluster = blocks <= MAX_CLUSTER && has_clusters<ROWS, X>(gpu);
  Launch how;
  if (batch.is_cluster) {
    while (how.cluster < blocks) how.cluster *= 2;
    blocks = how.cluster;
  }
  how.grid = dim3{unsigned(blocks)};
  how.block = dim3{THREADS};
  how.shared = Shared<ROWS>(batch.x.n, batch.x.d).bytes();
  how.stream = stream;
  how.cooperative = !batch.is_cluster;
  return launch(one_pass_kernel<ROWS, X>, how, batch);
}

template <class X>
Status run(const dml_rows& rows, const int64_t* labels, float margin, float* loss, float* d_rows,
           float* scratch, void* stream) {
  Gpu gpu;
  const Status status = find_gpu(gpu);
  if (status) return status;
  const Batch<X> batch{X(rows),
                       labels,
                       margin,
                       loss,
                       d_rows,
                       reinterpret_cast<Summary*>(scratch),
                       scratch + sizeof(Summary) / sizeof(float) * rows.n,
                       false};
  switch (rows_of_block(rows.n, rows.d, gpu)) {
    case 8:
      return run<8>(batch, gpu, stream);
    case 16:
      return run<16>(batch, gpu, stream);
    default:
      return INVALID;
  }
}

template <class T, class... Rest>
Status run_with_quads(const dml_rows& rows, Rest... rest) {
  return comes_in<T, 4>(rows) ? run<Rows<T, true>>(rows, rest...) : run<Rows<T, false>>(rows, rest...);
}

}  // namespace
}  // namespace dml

int dml_cuda_one_pass_fits(int64_t n, int64_t d) {
  dml::Gpu gpu;
  return !dml::find_gpu(gpu) && dml::rows_of_block(n, d, gpu) != 0;
}

int64_t dml_cuda_one_pass_scratch(int64_t n) {
  return n * (sizeof(dml::Summary) / sizeof(float) + 1);
}

int dml_cuda_lifted_one_pass(const dml_rows* rows, const int64_t* labels, float margin, float* loss,
                             float* d_rows, float* scratch, void* stream) {
  switch (rows->dtype) {
    case DML_FLOAT32:
      return dml::run_with_quads<float>(*rows, labels, margin, loss, d_rows, scratch, stream);
    case DML_FLOAT16:
      return dml::run_with_quads<dml::float16>(*rows, labels, margin, loss, d_rows, scratch, stream);
    case DML_BFLOAT16:
      return dml::run_with_quads<dml::bfloat16>(*rows, labels, margin, loss, d_rows, scratch, stream);
    default:
      return dml::INVALID;
  }
}
