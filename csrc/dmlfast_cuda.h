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

// How many floats of scratch memory that takes.
DML_API int64_t dml_cuda_one_pass_scratch(int64_t n, int64_t d);

// The lifted structured loss of a batch with labels (n,), and its gradient (n, d) where that is not NULL, in
// one launch.
DML_API int dml_cuda_lifted_one_pass(const struct dml_rows*, const int64_t* labels, float margin, float* loss,
                                     float* d_rows, float* scratch, void* stream);

DML_API const char* dml_cuda_error(int status);  // in words

#ifdef __cplusplus
}
#endif
