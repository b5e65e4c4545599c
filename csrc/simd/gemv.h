// Products of a matrix, as it lies in memory, with few vectors (GEMV).
#pragma once

#include <cstdint>

#include "common.h"
#include "rows.h"

namespace plr_kernels {
namespace {

// The sums of a tile's lanes, Sums of them.
template <int Sums>
inline void sum_lanes(const Vector (&sums)[Sums], float* result) {
  if constexpr (kGemvRows * kGemvVectors == kLanes) {
    // All at once; a smaller tile, too, so that its results are the same numbers.
    Vector all[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) all[i] = i < Sums ? sums[i < Sums ? i : 0] : zero();
    float lanes[kLanes];
    store(lanes, sums_of_lanes(all));
#pragma GCC unroll 16
    for (int i = 0; i < Sums; ++i) result[i] = lanes[i];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < Sums; ++i) result[i] = sum_of_lanes(sums[i]);
  }
}

// How many bytes before their use rows of the matrix are fetched. The CPU sees by itself where reading goes on, but not
// far enough ahead to keep memory busy while a tile's sums, and what is done with them, are computed.
constexpr int64_t kGemvAhead = 16 * 1024;

// Rows [first, first + Rows) of the matrix times Vectors vectors; `single` where there is only one vector in all,
// `prefetch` to fetch later rows meanwhile.
template <DataType type, int Rows, int Vectors, bool single, bool prefetch>
inline void gemv_tile(const Matrix& matrix, int64_t first, const float* vectors, int64_t vectors_step, float* result,
                      int64_t result_step) {
  const void* rows[Rows];
  Vector sums[Rows * Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) rows[i] = row_of(matrix, first + i);
#pragma GCC unroll 16
  for (int i = 0; i < Rows * Vectors; ++i) sums[i] = zero();
  const int64_t row_bytes = larger(matrix.stride * bytes_of(type), 1);
  const int64_t ahead = smaller(kGemvAhead / row_bytes, matrix.rows - first - Rows) * row_bytes;
  int64_t column = 0;
  for (; column + kLanes <= matrix.columns; column += kLanes) {
    Vector b[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) b[j] = load(vectors + j * vectors_step + column);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      if (prefetch && column * bytes_of(type) % kCacheLine == 0) {
        __builtin_prefetch(static_cast<const char*>(rows[i]) + ahead + column * bytes_of(type), 0, 2);
      }
      const Vector a = load_upcast(rows[i], type, column);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i * Vectors + j] = multiply_add(a, b[j], sums[i * Vectors + j]);
    }
  }
  if (column < matrix.columns) {
    // The last 16 columns; those that were summed already become zero on both sides, as infinity times zero is NaN.
    const int64_t start = matrix.columns - kLanes;
    const int done = static_cast<int>(column - start);
    Vector b[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) b[j] = without_first(load(vectors + j * vectors_step + start), done);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vector a = without_first(load_upcast(rows[i], type, start), done);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sums[i * Vectors + j] = multiply_add(a, b[j], sums[i * Vectors + j]);
    }
  }
  if constexpr (single) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) result[i] = sum_of_lanes(sums[i]);
  } else {
    float products[Rows * Vectors];
    sum_lanes(sums, products);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) result[j * result_step + i] = products[i * Vectors + j];
    }
  }
}

// The tile of `vectors_count` <= Vectors vectors.
template <DataType type, int Rows, int Vectors, bool prefetch>
inline void gemv_tile_for(const Matrix& matrix, int64_t first, const float* vectors, int64_t vectors_step,
                          int64_t vectors_count, float* result, int64_t result_step) {
  if constexpr (Vectors > 1) {
    if (vectors_count < Vectors) {
      gemv_tile_for<type, Rows, Vectors - 1, prefetch>(matrix, first, vectors, vectors_step, vectors_count, result,
                                                       result_step);
      return;
    }
  }
  gemv_tile<type, Rows, Vectors, false, prefetch>(matrix, first, vectors, vectors_step, result, result_step);
}

// `Rows` rows times all vectors.
template <DataType type, int Rows>
inline void gemv_rows(const Matrix& matrix, int64_t first, const float* vectors, int64_t vectors_step,
                      int64_t vectors_count, float* result, int64_t result_step) {
  const auto tile = [&](int64_t j, auto function) {
    function(matrix, first, vectors + j * vectors_step, vectors_step, smaller(kGemvVectors, vectors_count - j),
             result + j * result_step, result_step);
  };
  tile(0, gemv_tile_for<type, Rows, kGemvVectors, true>);
  for (int64_t j = kGemvVectors; j < vectors_count; j += kGemvVectors) {
    tile(j, gemv_tile_for<type, Rows, kGemvVectors, false>);
  }
}

void gemv(const Matrix& matrix, int64_t first, int64_t count, const float* vectors, int64_t vectors_step,
          int64_t vectors_count, float* result, int64_t result_step) {
  with_type(matrix.type, [&](auto constant) {
    constexpr DataType type = constant.value;
    int64_t i = 0;
    if (vectors_count == 1) {
      for (; i + kDotRows <= count; i += kDotRows) {
        gemv_tile<type, kDotRows, 1, true, true>(matrix, first + i, vectors, 0, result + i, 0);
      }
      for (; i < count; ++i) gemv_tile<type, 1, 1, true, true>(matrix, first + i, vectors, 0, result + i, 0);
      return;
    }
    for (; i + kGemvRows <= count; i += kGemvRows) {
      gemv_rows<type, kGemvRows>(matrix, first + i, vectors, vectors_step, vectors_count, result + i, result_step);
    }
    for (; i < count; ++i) {
      gemv_rows<type, 1>(matrix, first + i, vectors, vectors_step, vectors_count, result + i, result_step);
    }
  });
}

}  // namespace
}  // namespace plr_kernels
