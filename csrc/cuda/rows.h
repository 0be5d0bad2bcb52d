// Rows of any strides and number format, read four components at a time.
#pragma once

#include "../dmlfast_cuda.h"
#include "device.h"

namespace dml {

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T at[4];
};

template <class T>
__device__ __forceinline__ Quad<float> to_float(const Quad<T>& quad) {
  return {{to_float(quad.at[0]), to_float(quad.at[1]), to_float(quad.at[2]), to_float(quad.at[3])}};
}

template <class T>
struct Rows {
  const T* data;
  int64_t row_stride, column_stride;
  int n, d;
  bool aligned;  // all quads are whole, and one instruction can load each

  explicit Rows(const dml_rows& rows)
      : data(static_cast<const T*>(rows.data)),
        row_stride(rows.row_stride),
        column_stride(rows.column_stride),
        n(int(rows.n)),
        d(int(rows.d)),
        aligned(column_stride == 1 && row_stride % 4 == 0 && d % 4 == 0 &&
                reinterpret_cast<uintptr_t>(data) % sizeof(Quad<T>) == 0) {}

  __device__ __forceinline__ int clamped(int i) const { return i < n ? i : n - 1; }

  // Row i, the last one beyond that.
  __device__ __forceinline__ const T* row(int i) const { return data + clamped(i) * row_stride; }

  // Components [k, k + 4) of some rows, 0 beyond the last.
  template <int COUNT>
  __device__ __forceinline__ void load(Quad<T> (&quads)[COUNT], const T* const (&rows)[COUNT], int k) const {
    if (aligned) {
#pragma unroll
      for (int c = 0; c < COUNT; c++)
        quads[c] = k < d ? *reinterpret_cast<const Quad<T>*>(rows[c] + k) : Quad<T>{};
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++)
#pragma unroll
        for (int c = 0; c < COUNT; c++) quads[c].at[e] = k + e < d ? rows[c][(k + e) * column_stride] : T{};
    }
  }
};

}  // namespace dml
