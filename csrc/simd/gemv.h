// The product of a matrix, as it lies in memory, with a vector (GEMV).
#pragma once

#include <cstdint>

#include "common.h"
#include "rows.h"

namespace plr_kernels {
namespace {

// result [Rows] = rows [first, first + Rows) of the matrix · vector.
template <DataType type, int Rows>
inline void gemv_tile(const Matrix& matrix, int64_t first, const float* vector, float* result) {
  const void* rows[Rows];
  Vector sums[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    rows[i] = row_of(matrix, first + i);
    sums[i] = zero();
  }
  int64_t column = 0;
  for (; column + kLanes <= matrix.columns; column += kLanes) {
    const Vector b = load(vector + column);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) sums[i] = multiply_add(load_upcast(rows[i], type, column), b, sums[i]);
  }
  if (column < matrix.columns) {
    // The last 16 columns; those that were summed already become zero on both sides, as infinity times zero is NaN.
    const int64_t start = matrix.columns - kLanes;
    const int done = static_cast<int>(column - start);
    const Vector b = without_first(load(vector + start), done);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      sums[i] = multiply_add(without_first(load_upcast(rows[i], type, start), done), b, sums[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) result[i] = sum_of_lanes(sums[i]);
}

void gemv(const Matrix& matrix, int64_t first, int64_t count, const float* vector, float* result) {
  with_type(matrix.type, [&](auto type) {
    int64_t i = 0;
    for (; i + kDotRows <= count; i += kDotRows) gemv_tile<type.value, kDotRows>(matrix, first + i, vector, result + i);
    for (; i < count; ++i) gemv_tile<type.value, 1>(matrix, first + i, vector, result + i);
  });
}

}  // namespace
}  // namespace plr_kernels
