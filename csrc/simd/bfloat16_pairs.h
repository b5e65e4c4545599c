// Panels whose cells are pairs of bfloat16: two numbers that are neighbours along the inner dimension of a product.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "rows.h"

namespace plr_kernels {
namespace {

#ifdef __AVX512BF16__

inline uint32_t pair_of(uint16_t first, uint16_t second) {
  return static_cast<uint32_t>(first) | static_cast<uint32_t>(second) << 16;
}

// A row in float32 or narrower, divided by its norm where it has one, rounded to nearest.
void round_row(const Matrix& source, int64_t row, uint16_t* target) {
  const void* numbers = row_of(source, row);
  const bool divided = source.norms != nullptr;
  const Vector divisor = broadcast(divided ? divisor_of(source, row) : 1.0f);
  for (int64_t column = 0; column < source.columns; column += 2 * kLanes) {
    Vector values[2] = {zero(), zero()};
    const int64_t left = source.columns - column;
    values[0] = load_padded(numbers, source.type, column, left);
    if (left > kLanes) values[1] = load_padded(numbers, source.type, column + kLanes, left - kLanes);
    if (divided) {
      for (Vector& value : values) value = value / divisor;
    }
    const Vector rounded = neighbours_as_pairs(values[0], values[1]);
    __builtin_memcpy(target + column, &rounded, smaller(2 * kLanes, left) * sizeof(uint16_t));
  }
}

// A cell (i, c) of [rows, columns / 2]: row i, columns 2 c and 2 c + 1.
void pair_columns(const uint16_t* row, int64_t columns, int64_t i, float* panels, int64_t panels_rows) {
  for (int64_t column = 0; column < columns; column += 2 * kPanelColumns) {
    const int64_t numbers = smaller(2 * kPanelColumns, columns - column);
    float* target = panels + (column / 2 * panels_rows) + i * kPanelColumns;
    if (numbers < 2 * kPanelColumns) __builtin_memset(target, 0, kPanelColumns * sizeof(float));
    __builtin_memcpy(target, row + column, numbers * sizeof(uint16_t));
  }
}

// A cell (i, c) of [rows / 2, columns]: column c, rows 2 i and 2 i + 1. A row may be null: zeros.
void pair_rows(const uint16_t* row, const uint16_t* next_row, int64_t columns, int64_t i, float* panels,
               int64_t panels_rows) {
  static const uint16_t zeros[kPanelColumns] = {};
  for (int64_t column = 0; column < columns; column += kPanelColumns) {
    const uint16_t* first = row == nullptr ? zeros : row + column;
    const uint16_t* second = next_row == nullptr ? zeros : next_row + column;
    uint32_t cells[kPanelColumns] = {};
    const int64_t numbers = smaller(kPanelColumns, columns - column);
    if (numbers == kPanelColumns) {
      for (int64_t c = 0; c < kPanelColumns; ++c) cells[c] = pair_of(first[c], second[c]);
    } else {
      for (int64_t c = 0; c < numbers; ++c) cells[c] = pair_of(first[c], second[c]);
    }
    __builtin_memcpy(panels + column * panels_rows + i * kPanelColumns, cells, sizeof(cells));
  }
}

// scores [items, states] as [items, states / 2] and, where not null, as [items / 2, states]; rounded to nearest.
void pair_scores(Scores scores, MutablePanels by_state, MutablePanels by_item) {
  for (int64_t state = 0; state < scores.states; state += kPanelColumns) {
    const float* panel = scores.data + state * scores.rows;
    for (int64_t i = 0; i < scores.items; ++i) {
      const float* row = panel + i * kPanelColumns;
      float* target = by_state.data + state / (2 * kPanelColumns) * (by_state.rows * kPanelColumns) +
                      i * kPanelColumns + state / 2 % kPanelColumns;
      store(target, neighbours_as_pairs(load(row), load(row + kLanes)));
    }
    if (by_item.data == nullptr) continue;
    for (int64_t i = 0; i < scores.items; i += 2) {
      for (int64_t lane = 0; lane < kPanelColumns; lane += kLanes) {
        const float* row = panel + i * kPanelColumns + lane;
        const Vector next = i + 1 < scores.items ? load(row + kPanelColumns) : zero();
        store(by_item.data + state * by_item.rows + i / 2 * kPanelColumns + lane, lanes_as_pairs(load(row), next));
      }
    }
  }
}

#endif

}  // namespace
}  // namespace plr_kernels
