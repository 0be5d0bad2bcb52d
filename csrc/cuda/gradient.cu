// The gradient of rows: weights of pairs, and their product with the columns.
#include "stream.h"

namespace dml {
namespace {

struct Scale {
  float factor;
  const float *share, *poison;
};

// How pairs are weighed, and which of them are too near for a product.
struct Weights {
  Weigher weigh;
  const float* middle;  // and whether statistics span too much for one exponential a pair
  float near;
};

// A band of rows and KEPT chunks of their gradient.
template <class T, int WHOLE, int KEPT>
class Gradient {
 public:
  static constexpr int FRAGMENTS_OF_CHUNK = components_of_chunk<T> / 8;
  using Columns = Stream<T, WHOLE, WHOLE ? 0 : KEPT>;

  __device__ __forceinline__ Gradient(const dml_side& x, const dml_side& r, const dml_task& task,
                                      const Weights& w)
      : x_(x),
        r_(r),
        task_(task),
        w_(w),
        band_(blockIdx.x),
        kept_(int(blockIdx.z) * KEPT),
        first_(band_ * BAND + warp_of() * WARP_ROWS),
        rows_{Row(x, first_ + row_of(0)), Row(x, first_ + row_of(2))} {}

  // Adds the weighted columns up; what near pairs give is added to `out`.
  __device__ __forceinline__ void run(float* out) {
    const Tiles tiles(x_, r_, task_.select, band_, blockIdx.y, gridDim.y);
    const Span span(x_, first_, WARP_ROWS);
    const bool wide = task_.reduce == DML_LOGSUMEXP && !(w_.middle[1] == 0.0f);
    const float factor[2] = {factor_of(w_.weigh.xs, rows_[0].position),
                             factor_of(w_.weigh.xs, rows_[1].position)};
    Columns columns(x_, r_, task_.fast, band_, tiles.first, tiles.end, kept_);
    for (int tile = tiles.first; tile < tiles.end; tile++) {
      Scores scores;
      columns.next(scores);
      if (task_.score == DML_DISTANCE) to_squared_distances(scores, x_, r_, task_, rows_, tile);
      uint32_t near = 0;
      if (!wide && takes_all(x_, r_, task_, span, first_, tile))
        near = weigh_all(scores, tile, factor);
      else
        near = weigh_some(scores, tile);
      add_near(near, tile, out);
      each([&](int f, int e) {
        scores[f][e] = rounded_weight<T>(scores[f][e], task_.fast);
        weight_[e / 2] += scores[f][e];
      });
      // chunks that are kept beyond those of a row hold anything, and are not written
      add_weighted<T>(sums_, scores, columns.columns(0), task_.fast);
      columns.release();
    }
  }

  __device__ __forceinline__ void write(float* out, const Scale& scale) const {
    const float factor = scale.factor * (scale.share ? *scale.share : 1.0f), poison = *scale.poison;
    const int64_t d = x_.given.d;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float weight = weight_[h];
      weight += __shfl_xor_sync(ALL_LANES, weight, 1);
      weight += __shfl_xor_sync(ALL_LANES, weight, 2);
      if (!rows_[h].there) continue;
      float* const row = out + given_row(x_, rows_[h].position) * d;
#pragma unroll
      for (int n = 0; n < KEPT * FRAGMENTS_OF_CHUNK; n++) {
#pragma unroll
        for (int e = h * 2; e < h * 2 + 2; e++) {
          const int64_t k = component_of(n, e);
          if (k >= d) continue;
          const float own = task_.score == DML_DISTANCE ? weight * prepared(h, k) - sums_[n][e] : sums_[n][e];
          row[k] = factor * (own + row[k]) + poison;
        }
      }
    }
  }

 private:
  template <class F>
  __device__ __forceinline__ static void each(const F& f) {
#pragma unroll
    for (int n = 0; n < FRAGMENTS; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) f(n, e);
  }

  __device__ __forceinline__ int64_t component_of(int n, int e) const {
    return int64_t(kept_) * components_of_chunk<T> + column_of(n, e);
  }

  __device__ __forceinline__ float prepared(int h, int64_t k) const {
    constexpr int IN_CHUNK = components_of_chunk<T>;
    const int64_t position = rows_[h].position;
    const char* const tile = static_cast<const char*>(x_.rows) + position / TILE * x_.chunks * TILE_CHUNK;
    return to_float(element<T>(tile + k / IN_CHUNK * TILE_CHUNK, int(position % TILE), int(k % IN_CHUNK)));
  }

  __device__ __forceinline__ float factor_of(const dml_stats& stats, int at) const {
    if (!stats.grad) return 0.0f;
    return task_.reduce == DML_SUM ? stats.grad[at] : stats.factor[at];
  }

  __device__ __forceinline__ float share_of(float squared) const {
    return squared > 0.0f ? reciprocal_sqrt(squared) : 0.0f;
  }

  // Turns scores, all of which are selected, into weights by one exponential; returns which pairs are near.
  __device__ __forceinline__ uint32_t weigh_all(Scores& scores, int tile, const float (&factor)[2]) const {
    const bool distance = task_.score == DML_DISTANCE, exponential = task_.reduce == DML_LOGSUMEXP;
    const float middle = exponential ? w_.middle[0] : 0.0f;
    uint32_t near = 0;
    each([&](int f, int e) {
      const int j = tile * TILE + column_of(f, e);
      const Row& row = rows_[e / 2];
      float score = scores[f][e], inverse = 1.0f;
      if (distance) {
        if (is_near(score, row, j)) near |= 1u << (f * 4 + e);
        inverse = share_of(score);
        score *= inverse;
      }
      float weight = (factor[e / 2] + factor_of(w_.weigh.rs, j)) * inverse;
      if (exponential) weight *= exp2(term_of(score, r_, task_, row, j) - middle);
      scores[f][e] = near >> (f * 4 + e) & 1 ? 0.0f : weight;
    });
    return near;
  }

  // The same for scores of which some are selected, and for statistics of any span.
  __device__ __forceinline__ uint32_t weigh_some(Scores& scores, int tile) const {
    const bool distance = task_.score == DML_DISTANCE;
    uint32_t near = 0;
    each([&](int f, int e) {
      const int j = tile * TILE + column_of(f, e);
      const Row& row = rows_[e / 2];
      float score = scores[f][e], inverse = 1.0f;
      if (distance) {
        if (is_near(score, row, j)) near |= 1u << (f * 4 + e);
        inverse = share_of(score);
        score *= inverse;
      }
      const float weight = w_.weigh(score, r_, task_, row, j) * inverse;
      scores[f][e] = near >> (f * 4 + e) & 1 ? 0.0f : weight;
    });
    return near;
  }

  __device__ __forceinline__ bool is_near(float squared, const Row& row, int j) const {
    return squared <= (row.norm + r_.norm[j]) * w_.near && row.there && j < r_.given.n &&
           !(task_.apart && row.position == j);
  }

  // Adds to the rows of `out` what the near pairs of a tile give, each from the difference of its rows.
  __device__ __forceinline__ void add_near(uint32_t near, int tile, float* out) const {
#pragma unroll 1
    while (__any_sync(ALL_LANES, near != 0)) {
      const int bit = near ? lowest_bit(near) : 0, j = tile * TILE + column_of(bit / 4, bit % 4);
      const Row row = bit % 4 < 2 ? rows_[0] : rows_[1];
      float weight = 0.0f;
      if (near) {
        const float squared = squared_difference(x_, row.position, r_, j), inverse = share_of(squared);
        weight = w_.weigh(squared * inverse, r_, task_, row, j) * inverse;
        near &= near - 1;
      }
#pragma unroll 1
      for (int k = 0; k < 4; k++) {
        const int lane = lane_of() / 4 * 4 + k;
        add_difference(__shfl_sync(ALL_LANES, weight, lane), __shfl_sync(ALL_LANES, row.position, lane),
                       __shfl_sync(ALL_LANES, j, lane), out);
      }
    }
  }

  // A thread has the components that it writes in the end.
  __device__ __forceinline__ void add_difference(float weight, int i, int j, float* out) const {
    if (weight == 0.0f) return;
    const int64_t row = given_row(x_, i), column = given_row(r_, j);
#pragma unroll 1
    for (int n = 0; n < KEPT * FRAGMENTS_OF_CHUNK; n++) {
#pragma unroll 1
      for (int e = 0; e < 2; e++) {
        const int64_t k = component_of(n, e);
        if (k >= x_.given.d) return;
        out[row * x_.given.d + k] += weight * (component(x_.given, row, k) - component(r_.given, column, k));
      }
    }
  }

  const dml_side& x_;
  const dml_side& r_;
  const dml_task& task_;
  const Weights& w_;
  const int band_, kept_, first_;
  const Row rows_[2];
  float weight_[2] = {};
  float sums_[KEPT * FRAGMENTS_OF_CHUNK][4] = {};
};

template <class T, int WHOLE, int KEPT>
__global__ void __launch_bounds__(THREADS, 1)
    gradient_kernel(DML_ARGUMENT dml_side x, DML_ARGUMENT dml_side r, DML_ARGUMENT dml_task task,
                    DML_ARGUMENT Weights weights, DML_ARGUMENT Scale scale, float* out) {
  out += int64_t(blockIdx.y) * x.given.n * x.given.d;
  Gradient<T, WHOLE, KEPT> gradient(x, r, task, weights);
  gradient.run(out);
  gradient.write(out, scale);
}

template <class T, int WHOLE, int KEPT>
Status gradient(const dml_side& x, const dml_side& r, const dml_task& task, const Weights& weights,
                const Scale& scale, float* out, void* stream) {
  const unsigned slices = unsigned((x.chunks + KEPT - 1) / KEPT);
  const Launch how{dim3{unsigned(x.padded / BAND), unsigned(task.splits), slices}, dim3{THREADS, 1, 1},
                   Gradient<T, WHOLE, KEPT>::Columns::SHARED, stream};
  return launch(gradient_kernel<T, WHOLE, KEPT>, how, x, r, task, weights, scale, out);
}

}  // namespace
}  // namespace dml

int dml_cuda_gradient(const dml_side* x, const dml_side* r, const dml_task* task, const dml_stats* xs,
                      const dml_stats* rs, const float* middle, float near, int lifted, float factor,
                      const float* share, const float* poison, float* out, void* stream) {
  using namespace dml;
  const Weights weights{Weigher{*xs, *rs, lifted != 0}, middle, near};
  const Scale scale{factor, share, poison};
  return by_dtype(task->dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int KEPT = std::is_same_v<T, float16> ? 2 : 4;  // as many as registers hold
    const auto chosen = x->chunks == 1   ? gradient<T, 1, 1>
                        : x->chunks == 2 ? gradient<T, 2, 2>
                                         : gradient<T, 0, KEPT>;
    return chosen(*x, *r, *task, weights, scale, out, stream);
  });
}
