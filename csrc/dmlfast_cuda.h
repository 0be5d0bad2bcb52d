// The C interface of the CUDA kernels. Addresses are of the GPU's memory (but those of structures),
// statistics and gradients float32. Functions return 0, or the number of a CUDA error. The maths stands in
// the README of each op.
#pragma once

#include <stdint.h>

#include "dmlfast.h"

#ifdef __cplusplus
extern "C" {
#endif

enum dml_dtype { DML_FLOAT32 = 0, DML_FLOAT16 = 1, DML_BFLOAT16 = 2 };

// Rows (n, d) of any strides, in elements.
struct dml_rows {
  const void* data;
  int64_t n, d, row_stride, column_stride;
  int32_t dtype;
};

// Whether the GPU at hand can take a batch of n rows of d components at once, 1 or 0.
DML_API int dml_cuda_one_pass_fits(int64_t n, int64_t d);

// How many floats of scratch memory a batch of n rows takes.
DML_API int64_t dml_cuda_one_pass_scratch(int64_t n);

// The lifted structured loss of a batch with labels (n,), and its gradient (n, d) where that is not NULL, in
// one launch. The scratch memory starts at a multiple of 16 bytes.
DML_API int dml_cuda_lifted_one_pass(const struct dml_rows*, const int64_t* labels, float margin, float* loss,
                                     float* d_rows, float* scratch, void* stream);

// One side of the pairs: its rows in the order of their labels, each at a position, padded to whole bands of
// 128 positions. Where columns are sought by label, those of the label of the row at position i are at the
// positions [low[i], high[i]) of the other side.
struct dml_side {
  struct dml_rows given;
  const int64_t* order;       // (n,): which row is at a position; NULL where each is at its own
  const int32_t *low, *high;  // (n,) or NULL
  const int32_t* self;  // (n,): the position on the other side that is the row itself, -1 for none; or NULL
  const float* bias;    // (n,), in the unit of terms, or NULL
  void* rows;           // prepared: tiles of 64 rows by chunks of 128 bytes, see csrc/cuda/tiles.h
  float* norm;          // (padded,): squared lengths of the prepared rows
  float* largest;       // (1,): the largest of these, 0 before; NaN or infinite where something is
  int64_t padded;
  int32_t chunks;  // of a prepared row
};

// How all pairs are looked at. Terms of a log-sum-exp are powers of two, as scale, offset, bias and
// statistics are.
struct dml_task {
  int32_t dtype;  // of prepared rows
  int32_t fast;   // float32 products in tf32
  int32_t score, select, reduce;
  float scale, offset;
  int32_t apart;   // both sides are the same rows, and none meets itself
  int32_t splits;  // parts of the columns, each worked on by itself
};

// Statistics of a side by position, and their gradients. Members are NULL where there are none.
struct dml_stats {
  const float* value;   // (padded,): -1e30 where nothing was selected
  const float* grad;    // (padded,)
  const float* factor;  // (padded,): grad * exp2(middle - value)
};

// Brings labels (n,) in order: which row is at a position, and where its label begins and ends among others
// (m,) in order, NULL for the labels themselves. Takes a time of n (n + m).
DML_API int dml_cuda_order(const int64_t* labels, int64_t n, const int64_t* others, int64_t m, int64_t* order,
                           int32_t* low, int32_t* high, void* stream);

// Prepares a side: rows minus centre (d,), where that is not NULL, in the dtype of the task.
DML_API int dml_cuda_prepare(const struct dml_side*, const struct dml_task*, const float* centre,
                             void* stream);

// How many slots, (padded,) each, the statistics of rows that face themselves are added up in; 0 where they
// are made another way.
DML_API int dml_cuda_reduce_slots(const struct dml_side* x, const struct dml_side* r, const struct dml_task*);

// The statistics of the rows of x over the columns r. parts: (2, splits, padded), for what each part of the
// columns has. slots: zeros, or NULL where there are none. value: (padded,), by position; result: (n,), by
// row, natural logarithms or sums; each may be NULL.
DML_API int dml_cuda_reduce(const struct dml_side* x, const struct dml_side* r, const struct dml_task*,
                            float* parts, float* slots, float* value, float* result, void* stream);

// Brings statistics (n,), as natural logarithms or sums, and their gradients (n,) in the order of positions.
DML_API int dml_cuda_order_statistics(const struct dml_side*, const struct dml_task*,
                                      const float* given_value, const float* given_grad, float* value,
                                      float* grad, void* stream);

// Factors (padded,) of both sides, NULL where they are not wanted. middle: (2,), the middle of all
// statistics, and 1 where they span too much for one exponential a pair, else 0.
DML_API int dml_cuda_factors(const struct dml_side* x, const struct dml_side* r, const struct dml_stats* xs,
                             const struct dml_stats* rs, float* x_factor, float* r_factor, float* middle,
                             void* stream);

// Half the mean of the squares over all positive pairs, (1,), and the share of a pair, (1,).
DML_API int dml_cuda_mean(const struct dml_side* x, const struct dml_side* r, const float* squares,
                          const int32_t* counts, float* loss, float* share, void* stream);

// Over the positive pairs of x and r, with the statistics of the lifted loss: for each row the sum of
// hinge^2, the number of pairs, and the sum of hinge * dJ / dL_i, (padded,) each.
DML_API int dml_cuda_positives(const struct dml_side* x, const struct dml_side* r, const struct dml_task*,
                               const struct dml_stats* xs, const struct dml_stats* rs, float* squares,
                               int32_t* counts, float* grad, void* stream);

// The gradient of the rows of x, (splits, n, d), times factor * *share, where there were zeros. middle: of
// the factors. near: the share of the norms below which the square of a distance makes the gradient of a pair
// too small a difference for a product. lifted: pairs of one label weigh what the hinge of the lifted loss
// gives them.
DML_API int dml_cuda_gradient(const struct dml_side* x, const struct dml_side* r, const struct dml_task*,
                              const struct dml_stats* xs, const struct dml_stats* rs, const float* middle,
                              float near, int lifted, float factor, const float* share, float* out,
                              void* stream);

// A block of pairs: bands of 128 rows of x, and parts of the columns, of task.splits.
struct dml_block {
  int32_t band, bands, part, parts;
};

// Whether the gradient of the rows of x is to come of blocks of weights, 1 or 0. It is then the sum of each
// row's weights times the row, for distances, less the product of the weights with the columns.
DML_API int dml_cuda_weights_fit(const struct dml_side* x, const struct dml_side* r, const struct dml_task*);

// The columns r as weights are multiplied with them: bfloat16, (tiles * 64, width), zeros where there are
// none.
DML_API int dml_cuda_columns(const struct dml_side* r, void* columns, int64_t width, void* stream);

// The weights of a block of pairs, bfloat16, (bands * 128, stride), but 0 where a pair is too near for a
// product: see dml_cuda_gradient. sums: (splits, bands * 128), of each part. nears: (bands of all rows,
// splits), where there were zeros, 1 where such pairs are.
DML_API int dml_cuda_weights(const struct dml_side* x, const struct dml_side* r, const struct dml_task*,
                             const struct dml_stats* xs, const struct dml_stats* rs, const float* middle,
                             float near, int lifted, const struct dml_block*, void* weights, int32_t stride,
                             float* sums, uint8_t* nears, void* stream);

// The gradient (n, d) of the rows of a block's bands, times factor * *share; products: of their weights with
// all columns, (bands * 128, width).
DML_API int dml_cuda_finish(const struct dml_side* x, const struct dml_side* r, const struct dml_task*,
                            const struct dml_block*, const float* sums, const float* products, int64_t width,
                            float factor, const float* share, float* out, void* stream);

// Adds to the gradient (n, d) of all rows what their near pairs give.
DML_API int dml_cuda_near(const struct dml_side* x, const struct dml_side* r, const struct dml_task*,
                          const struct dml_stats* xs, const struct dml_stats* rs, const float* middle,
                          float near, int lifted, const uint8_t* nears, float factor, const float* share,
                          float* out, void* stream);

// The weights of the pairs of each row of x, added up, (padded,): the gradient of its bias.
DML_API int dml_cuda_bias_gradient(const struct dml_side* x, const struct dml_side* r, const struct dml_task*,
                                   const struct dml_stats* xs, const struct dml_stats* rs, float* out,
                                   void* stream);

// Whether the GPU at hand has kernels for the exponentials of a softmax, of up to 512 components, 1 or 0.
DML_API int dml_cuda_exponentials_fit(void);

// Lays out rows in tiles of 64, padded with zeros to whole tiles and to chunks of 128 bytes, as
// dml_cuda_exponentials takes them, bfloat16. Chunks: a power of two. Classes have inverse lengths, NULL for
// rows, and get what it takes of these, (padded,) each: see there. far: which of them are far from 1.
DML_API int dml_cuda_lay_out(const struct dml_rows*, int64_t padded, int32_t chunks, void* tiles,
                             const float* inverse, float far, float* by_class, float* kept_by, void* stream);

// Rows against classes, and what is taken of each pair of them but a row with its own class: exp2(score *
// by_row * by_class - shift).
struct dml_exponentials {
  const void *rows, *classes;  // laid out
  int64_t n, padded;           // rows, and in whole bands of 128
  int64_t m, padded_m;         // classes, and in whole tiles of 64
  int32_t chunks;
  const int64_t* labels;  // (n,), where the first class is `first`
  int64_t first;
  const float* by_row;    // (n,)
  const float* by_class;  // (padded_m,)
  const float* shift;     // (n,), or NULL for 0
  float* sums;            // (parts, padded): logarithms of the sums over parts of the classes, or NULL
  void* kept;             // bfloat16 (padded, pitch): exponentials times kept_by, 0 beyond m; or NULL
  int64_t pitch;          // a multiple of 8
  const float* kept_by;   // (padded_m,)
  int32_t parts;          // of the classes, each worked on by itself
};

// running: sums of exponentials of any span, of which each row has the greatest taken from all; no shift, and
// none is kept.
DML_API int dml_cuda_exponentials(const struct dml_exponentials*, int running, void* stream);

// 0 where the driver knows this runtime and the library has code for the GPU at hand, else a status.
DML_API int dml_cuda_find_code(void);

DML_API uint32_t dml_cuda_interface(void);  // the CRC-32 of both headers as they were compiled, or 0

DML_API const char* dml_cuda_error(int status);  // in words

#ifdef __cplusplus
}
#endif
