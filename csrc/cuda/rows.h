// Rows of any strides and number format, read by components or four of them at a time.
#pragma once

#include "../dmlfast_cuda.h"
#include "tiles.h"

namespace dml {

__device__ __forceinline__ float component(const dml_rows& rows, int64_t row, int64_t k) {
  const int64_t at = row * rows.row_stride + k * rows.column_stride;
  if (rows.dtype == DML_FLOAT32) return static_cast<const float*>(rows.data)[at];
  if (rows.dtype == DML_FLOAT16) return to_float(static_cast<const float16*>(rows.data)[at]);
  return to_float(static_cast<const bfloat16*>(rows.data)[at]);
}

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T at[4];
};

template <class T>
__device__ __forceinline__ Quad<float> to_float(const Quad<T>& quad) {
  return {{to_float(quad.at[0]), to_float(quad.at[1]), to_float(quad.at[2]), to_float(quad.at[3])}};
}

template <class T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return to_bfloat16(value);
  else if constexpr (std::is_same_v<T, float16>)
    return to_float16(value);
  else
    return value;
}

// Whether rows are whole in so many components, and one instruction can load these at a time.
template <class T, int COMPONENTS>
bool comes_in(const dml_rows& rows) {
  return rows.column_stride == 1 && rows.row_stride % COMPONENTS == 0 && rows.d % COMPONENTS == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % (COMPONENTS * sizeof(T)) == 0;
}

template <class T>
constexpr int in_unit = UNIT / int(sizeof(T));

// What one instruction loads of a row, or stores.
template <class T>
struct alignas(UNIT) Unit {
  T at[in_unit<T>];
};

// Whether rows are of a type, and whole in units.
template <class T>
bool comes_in_units(const dml_rows& rows, int dtype) {
  return rows.dtype == dtype && comes_in<T, in_unit<T>>(rows);
}

// A unit of a row, zeros beyond its last component. WHOLE: of rows that come in units.
template <class T, bool WHOLE>
__device__ __forceinline__ Unit<T> unit_of(const dml_rows& rows, int64_t row, int unit) {
  const int64_t first = int64_t(unit) * in_unit<T>;
  Unit<T> found = {};
  if (first >= rows.d) return found;
  if constexpr (WHOLE) {
    found =
        *reinterpret_cast<const Unit<T>*>(static_cast<const T*>(rows.data) + row * rows.row_stride + first);
  } else {
#pragma unroll
    for (int e = 0; e < in_unit<T>; e++)
      if (first + e < rows.d) found.at[e] = from_float<T>(component(rows, row, first + e));
  }
  return found;
}

template <class Number, bool QUADS>
struct Rows {
  using T = Number;

  const T* data;
  int64_t row_stride, column_stride;
  int n, d;

  explicit Rows(const dml_rows& rows)
      : data(static_cast<const T*>(rows.data)),
        row_stride(rows.row_stride),
        column_stride(rows.column_stride),
        n(int(rows.n)),
        d(int(rows.d)) {}

  __device__ __forceinline__ int clamped(int i) const { return i < n ? i : n - 1; }

  // Row i, the last one beyond that.
  __device__ __forceinline__ const T* row(int i) const { return data + clamped(i) * row_stride; }

  // Components [k, k + 4) of a row, 0 beyond the last.
  __device__ __forceinline__ Quad<T> load(const T* row, int k) const {
    if constexpr (QUADS) {
      return k < d ? *reinterpret_cast<const Quad<T>*>(row + k) : Quad<T>{};
    } else {
      Quad<T> quad;
#pragma unroll
      for (int e = 0; e < 4; e++) quad.at[e] = k + e < d ? row[(k + e) * column_stride] : T{};
      return quad;
    }
  }
};

}  // namespace dml
