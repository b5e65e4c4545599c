// The kernels of top_items. Included by kernels_implementation.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

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

// Each key's place is the number of larger ones: more comparisons than sorting takes, but none that is mispredicted.
void rank(int64_t* keys, int64_t count, int64_t k) {
  using Keys = int64_t __attribute__((vector_size(kKeyLanes * sizeof(int64_t))));
  constexpr int registers = 4;
  constexpr int64_t together = registers * kKeyLanes;
  int64_t unsorted[plr_kernels::kMostRanked + together];
  __builtin_memcpy(unsorted, keys, static_cast<std::size_t>(count) * sizeof(int64_t));
  __builtin_memset(unsorted + count, 0, together * sizeof(int64_t));
  for (int64_t i = 0; i < count; i += together) {
    Keys own[registers], places[registers];
    __builtin_memcpy(own, unsorted + i, sizeof(own));
#pragma GCC unroll 4
    for (int r = 0; r < registers; ++r) places[r] = Keys{};
    for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 4
      for (int r = 0; r < registers; ++r) places[r] -= unsorted[j] > own[r];  // true is -1
    }
    int64_t place[together];
    __builtin_memcpy(place, places, sizeof(place));
    for (int64_t lane = 0; lane < smaller(together, count - i); ++lane) {
      if (place[lane] < k) keys[place[lane]] = unsorted[i + lane];
    }
  }
}

// Rows of a matrix from cell `column` on.
struct Fetched {
  const Matrix& matrix;
  int64_t column;
  int64_t first;
  int64_t last;
};

// As `tile`, with the rows of a as they are, `stride` numbers apart; meanwhile brings as many terms of other rows into
// the second-level cache.
template <class Cells, int Rows, int Vectors>
inline void rows_tile(int64_t k, const float* a, int64_t stride, const float* b, float* c, bool accumulate,
                      const Fetched& fetched) {
  constexpr int64_t cache_line = 64;
  const int64_t cell_bytes = plr_kernels::bytes_of(fetched.matrix.type) * Cells::numbers;
  Vector sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sums[i][j] = zero();
  }
  for (int64_t done = 0; done < k; done += kLanes) {
    for (int64_t row = fetched.first; row < fetched.last; ++row) {
      const char* numbers = static_cast<const char*>(plr_kernels::row_of(fetched.matrix, row));
      for (int64_t byte = 0; byte < kLanes * cell_bytes; byte += cache_line) {
        __builtin_prefetch(numbers + (fetched.column + done) * cell_bytes + byte, 0, 2);
      }
    }
    const int64_t terms = smaller(kLanes, k - done);
    for (int64_t term = 0; term < terms; ++term) {
      Vector from_b[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) from_b[j] = load(b + j * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const Vector from_a = broadcast(a[i * stride]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sums[i][j] = Cells::multiply_add(from_a, from_b[j], sums[i][j]);
      }
      ++a;
      b += kPanelColumns;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      float* target = c + i * kPanelColumns + j * kLanes;
      store(target, accumulate ? load(target) + sums[i][j] : sums[i][j]);
    }
  }
}

template <class Cells, int Rows>
inline void rows_tile_of(int64_t rows, int64_t k, const float* a, int64_t stride, int64_t vectors, const float* b,
                         float* c, bool accumulate, const Fetched& fetched) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      rows_tile_of<Cells, Rows - 1>(rows, k, a, stride, vectors, b, c, accumulate, fetched);
      return;
    }
  }
  int64_t j = 0;
  if (vectors == kTileVectors) {
    rows_tile<Cells, Rows, kTileVectors>(k, a, stride, b, c, accumulate, fetched);
    j = kTileVectors;
  }
  for (; j < vectors; ++j) {
    rows_tile<Cells, Rows, 1>(k, a, stride, b + j * kLanes, c + j * kLanes, accumulate, fetched);
  }
}

template <class Cells>
void rows_product(const Matrix& source, int64_t first, int64_t count, int64_t columns, const float* b, float* c,
                  const Matrix& fetched, int64_t fetched_first, int64_t fetched_count) {
  const float* a = static_cast<const float*>(plr_kernels::row_of(source, first));
  const int64_t tiles = (count + kTileRows - 1) / kTileRows;
  for (int64_t term = 0; term < source.columns; term += kProductDepth) {
    const int64_t depth = smaller(kProductDepth, source.columns - term);
    int64_t i = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t rows = (count - i + tiles - t - 1) / (tiles - t);
      const Fetched own_part{fetched, term, fetched_first + fetched_count * t / tiles,
                             fetched_first + fetched_count * (t + 1) / tiles};
      rows_tile_of<Cells, kTileRows>(rows, depth, a + i * source.stride + term, source.stride, columns / kLanes,
                              b + term * kPanelColumns, c + i * kPanelColumns, term > 0, own_part);
      i += rows;
    }
  }
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
