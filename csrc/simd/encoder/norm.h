// LayerNorm of the sum of two rows, and rows of a linear layer's bias.
#pragma once

#include <cstdint>

#include "../common.h"

namespace plr_kernels {
namespace {

// The first `count` lanes of a, those of b from there on; any count.
inline Vector first_lanes(Vector a, int64_t count, Vector b) {
  alignas(64) static constexpr float lanes[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return where_greater(broadcast(static_cast<float>(count)), load(lanes), a, b);
}

void fill_rows(const float* row, int64_t columns, int64_t rows, MutablePanels c) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    const Vector numbers = load(row + column);
    float* first = c.data + column / kPanelColumns * kPanelColumns * c.rows + column % kPanelColumns;
    for (int64_t i = 0; i < rows; ++i) store(first + i * kPanelColumns, numbers);
  }
}

// Columns beyond the last, up to a multiple of 16, are zeros in a, b, weight and bias, and become so in c.
void normalize_rows(int64_t rows, int64_t columns, Panels a, Panels b, const float* weight, const float* bias, float eps,
                    MutablePanels c) {
  const float count = static_cast<float>(columns);
  const auto place = [](int64_t column, int64_t row, int64_t panels_rows) {
    return (column / kPanelColumns * panels_rows + row) * kPanelColumns + column % kPanelColumns;
  };
  for (int64_t i = 0; i < rows; ++i) {
    Vector sum = zero();
    for (int64_t column = 0; column < columns; column += kLanes) {
      const Vector x = load(a.data + place(column, i, a.rows)) + load(b.data + place(column, i, b.rows));
      store(c.data + place(column, i, c.rows), x);
      sum = sum + x;
    }
    const Vector mean = broadcast(sum_of_lanes(sum) / count);
    Vector squares = zero();
    for (int64_t column = 0; column < columns; column += kLanes) {
      float* target = c.data + place(column, i, c.rows);
      const Vector deviation = first_lanes(load(target) - mean, columns - column, zero());
      store(target, deviation);
      squares = multiply_add(deviation, deviation, squares);
    }
    const float variance = sum_of_lanes(squares) / count;
    // One that overflows must not pass for a scale of 0: NaN, as of numbers that are none.
    const Vector scale = broadcast(variance * 0.0f + 1.0f / __builtin_sqrtf(variance + eps));
    for (int64_t column = 0; column < columns; column += kLanes) {
      float* target = c.data + place(column, i, c.rows);
      store(target, multiply_add(load(target) * scale, load(weight + column), load(bias + column)));
    }
  }
}

}  // namespace
}  // namespace plr_kernels
