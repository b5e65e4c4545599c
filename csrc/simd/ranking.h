// The kernels of top_items. Included by kernels_implementation.h.
#pragma once

#include <cstdint>

namespace {

// Positions 16 · v + lane, ascending, of the scores in `vectors` Vectors, `step` numbers apart, that are not at most the
// bound of their lane: the larger ones and NaN. Returns their number.
int64_t above(const float* scores, int64_t step, int64_t vectors, const float* bounds, uint32_t* found) {
  const Vector bound = load(bounds);
  int64_t count = 0;
  for (int64_t v = 0; v < vectors; ++v) {
    // Seldom any: of random scores the n-th is among the k best so far with probability k / n.
    for (uint32_t lanes = not_at_most(load(scores + v * step), bound); lanes != 0; lanes &= lanes - 1) {
      found[count++] = static_cast<uint32_t>(v * kLanes + __builtin_ctz(lanes));
    }
  }
  return count;
}

template <DataType Type, int Rows>
inline void dot_tile(const Matrix& source, int64_t first, const float* vector, float* result) {
  const void* rows[Rows];
  Vector sums[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    rows[i] = plr_kernels::row_of(source, first + i);
    sums[i] = zero();
  }
  int64_t column = 0;
  for (; column + kLanes <= source.columns; column += kLanes) {
    const Vector b = load(vector + column);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) sums[i] = multiply_add(load_raised(rows[i], Type, column), b, sums[i]);
  }
  if (column < source.columns) {
    // The last 16 columns; those that were summed already become zero on both sides, as infinity times zero is NaN.
    const int64_t start = source.columns - kLanes;
    const int done = static_cast<int>(column - start);
    const Vector b = without_first(load(vector + start), done);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      sums[i] = multiply_add(without_first(load_raised(rows[i], Type, start), done), b, sums[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) result[i] = sum_of_lanes(sums[i]);
}

template <DataType Type>
inline void dots_of(const Matrix& source, int64_t first, int64_t count, const float* vector, float* result) {
  int64_t i = 0;
  for (; i + kDotRows <= count; i += kDotRows) dot_tile<Type, kDotRows>(source, first + i, vector, result + i);
  for (; i < count; ++i) dot_tile<Type, 1>(source, first + i, vector, result + i);
}

void dots(const Matrix& source, int64_t first, int64_t count, const float* vector, float* result) {
  switch (source.type) {
    case DataType::float16:
      return dots_of<DataType::float16>(source, first, count, vector, result);
    case DataType::bfloat16:
      return dots_of<DataType::bfloat16>(source, first, count, vector, result);
    default:
      return dots_of<DataType::float32>(source, first, count, vector, result);
  }
}

}  // namespace
