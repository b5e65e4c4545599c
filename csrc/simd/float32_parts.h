// Panels whose cells are pairs of parts of float32 numbers: a number is the sum of three bfloat16, its leading, middle
// and last part, each the rest rounded to nearest. Where no part is below the smallest normal number, the sum is exact.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "rows.h"

namespace plr_kernels {
namespace {

constexpr int64_t kParts = 3;
constexpr int64_t kSplitNumbers = 2 * kLanes;  // that are split together
constexpr int64_t kPartCells = kLanes;         // cells of one of their parts
constexpr int64_t kSplitCells = kParts * kPartCells;

// 32 bfloat16, the parts of as many numbers.
struct SplitNumbers {
  __m512i parts[kParts];

  SplitNumbers(Vector low, Vector high) {
    for (int part = 0; part < kParts; ++part) {
      parts[part] = _mm512_castps_si512(neighbours_as_pairs(low, high).value);
      low = low - numbers_of(_mm512_castsi512_si256(parts[part]));
      high = high - numbers_of(_mm512_extracti64x4_epi64(parts[part], 1));
    }
  }

 private:
  static Vector numbers_of(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
};

inline void store_cells(float* target, __m512i cells) { store(target, {_mm512_castsi512_ps(cells)}); }

// The 32 numbers of a row from `column` on, zeros for a null row and beyond the last.
inline SplitNumbers split(const float* row, int64_t column, int64_t columns) {
  Vector low = zero(), high = zero();
  if (row != nullptr) {
    const int64_t left = columns - column;
    low = load_padded(row, DataType::float32, column, left);
    if (left > kLanes) high = load_padded(row, DataType::float32, column + kLanes, left - kLanes);
  }
  return {low, high};
}

// Stores 32 numbers of rows i, even, and i + 1 from `column` on, a multiple of 32, as cells of pairs of both.
inline void store_rows_as_pairs(const SplitNumbers& first, const SplitNumbers& second, int64_t i, int64_t column,
                                MutablePanels panels) {
  alignas(64) static constexpr uint16_t low[kSplitNumbers] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i lower = _mm512_load_si512(low);
  const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(kLanes));
  const int64_t pair = i / 2, cell = pair / kPartCells * kSplitCells + pair % kPartCells;
  for (int part = 0; part < kParts; ++part) {
    float* cells = panels.data + column * panels.rows + (cell + part * kPartCells) * kPanelColumns;
    store_cells(cells, _mm512_permutex2var_epi16(first.parts[part], lower, second.parts[part]));
    store_cells(cells + kLanes, _mm512_permutex2var_epi16(first.parts[part], upper, second.parts[part]));
  }
}

// Stores 32 numbers of row i from `column` on, a multiple of 32, as cells of neighbours.
inline void store_as_neighbours(const SplitNumbers& numbers, int64_t column, int64_t i, MutablePanels panels) {
  for (int part = 0; part < kParts; ++part) {
    const int64_t cell = column / kSplitNumbers * kSplitCells + part * kPartCells;
    store_cells(panels.data + (cell / kPanelColumns * panels.rows + i) * kPanelColumns + cell % kPanelColumns,
                numbers.parts[part]);
  }
}

void split_rows(const float* row, const float* next_row, int64_t columns, int64_t i, MutablePanels along_columns,
                MutablePanels along_rows) {
  for (int64_t column = 0; column < columns; column += kSplitNumbers) {
    const SplitNumbers first = split(row, column, columns), second = split(next_row, column, columns);
    if (along_columns.data != nullptr) {
      if (row != nullptr) store_as_neighbours(first, column, i, along_columns);
      if (next_row != nullptr) store_as_neighbours(second, column, i + 1, along_columns);
    }
    if (along_rows.data != nullptr) store_rows_as_pairs(first, second, i, column, along_rows);
  }
}

void split_scores(Scores scores, MutablePanels by_state, MutablePanels by_item) {
  const Vector scale = broadcast(kPartsScale);
  for (int64_t state = 0; state < scores.states; state += kPanelColumns) {
    const float* panel = scores.data + state * scores.rows;
    const auto split_item = [&](int64_t i) -> SplitNumbers {
      if (i >= scores.items) return {zero(), zero()};
      const float* row = panel + i * kPanelColumns;
      return {load(row) * scale, load(row + kLanes) * scale};
    };
    const int64_t end = by_item.data == nullptr ? scores.items : round_up(scores.items, kSplitNumbers);
    for (int64_t i = 0; i < end; i += 2) {
      const SplitNumbers first = split_item(i), second = split_item(i + 1);
      if (i < scores.items) store_as_neighbours(first, state, i, by_state);
      if (i + 1 < scores.items) store_as_neighbours(second, state, i + 1, by_state);
      if (by_item.data != nullptr) store_rows_as_pairs(first, second, i, state, by_item);
    }
  }
}

float largest(const Matrix& source, int64_t first, int64_t count) {
  // Magnitudes are in the order of their bits, with NaN above infinity.
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i found[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t i = first; i < first + count; ++i) {
    const void* row = row_of(source, i);
    for (int64_t column = 0, turn = 0; column < source.columns; column += kLanes, turn ^= 1) {
      const Vector numbers = load_padded(row, source.type, column, source.columns - column);
      found[turn] = _mm512_max_epu32(found[turn], _mm512_and_si512(_mm512_castps_si512(numbers.value), magnitude));
    }
  }
  const uint32_t bits = _mm512_reduce_max_epu32(_mm512_max_epu32(found[0], found[1]));
  float result;
  __builtin_memcpy(&result, &bits, sizeof(result));
  return result;
}

}  // namespace
}  // namespace plr_kernels
