// Rows of a matrix as it lies in memory, of any type, to and from panels of float32.
#pragma once

#include <cstdint>

#include "common.h"

namespace plr_kernels {
namespace {

// The 16 numbers from `offset` on.
inline Vector load_upcast(const void* source, DataType type, int64_t offset) {
  switch (type) {
    case DataType::float16:
      return load_float16(static_cast<const uint16_t*>(source) + offset);
    case DataType::bfloat16:
      return load_bfloat16(static_cast<const uint16_t*>(source) + offset);
    default:
      return load(static_cast<const float*>(source) + offset);
  }
}

// The 16 numbers from `offset` on, zeros for those beyond the `left` that there are.
inline Vector load_padded(const void* source, DataType type, int64_t offset, int64_t left) {
  if (left >= kLanes) return load_upcast(source, type, offset);
  const int64_t bytes = bytes_of(type);
  alignas(64) char padded[kLanes * sizeof(float)] = {};
  __builtin_memcpy(padded, static_cast<const char*>(source) + offset * bytes, left * bytes);
  return load_upcast(padded, type, 0);
}

#ifndef __AVX512F__
// To nearest, ties to even.
inline uint16_t downcast_bfloat16(float number) {
  uint32_t bits;
  __builtin_memcpy(&bits, &number, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline void store_bfloat16(uint16_t* target, Vector a) {
  float numbers[kLanes];
  store(numbers, a);
  for (int lane = 0; lane < kLanes; ++lane) target[lane] = downcast_bfloat16(numbers[lane]);
}
#endif

inline void store_downcast(void* target, DataType type, int64_t offset, Vector values) {
  switch (type) {
    case DataType::float16:
      store_float16(static_cast<uint16_t*>(target) + offset, values);
      break;
    case DataType::bfloat16:
      store_bfloat16(static_cast<uint16_t*>(target) + offset, values);
      break;
    default:
      store(static_cast<float*>(target) + offset, values);
  }
}

void load_rows(const Matrix& source, int64_t first, int64_t count, float* panels, int64_t panels_rows) {
  for (int64_t i = 0; i < count; ++i) {
    const void* row = row_of(source, first + i);
    const bool divided = source.norms != nullptr;
    const Vector divisor = broadcast(divided ? divisor_of(source, first + i) : 1.0f);
    for (int64_t column = 0; column < source.columns; column += kLanes) {
      float* target = panels + (column / kPanelColumns * panels_rows + i) * kPanelColumns + column % kPanelColumns;
      const Vector values = load_padded(row, source.type, column, source.columns - column);
      store(target, divided ? values / divisor : values);
    }
  }
}

void row_norms(const Matrix& source, int64_t first, int64_t count, float* norms) {
  for (int64_t i = 0; i < count; ++i) {
    const void* row = row_of(source, first + i);
    Vector squares = zero();
    for (int64_t column = 0; column < source.columns; column += kLanes) {
      const Vector values = load_padded(row, source.type, column, source.columns - column);
      squares = multiply_add(values, values, squares);
    }
    norms[i] = __builtin_sqrtf(sum_of_lanes(squares));
  }
}

void remove_component(float* row, int64_t step, const float* unit, int64_t columns) {
  const auto at = [&](int64_t column) { return row + column / kPanelColumns * step + column % kPanelColumns; };
  Vector products = zero();
  for (int64_t column = 0; column < columns; column += kLanes) {
    products = multiply_add(load(at(column)), load(unit + column), products);
  }
  const Vector component = broadcast(-sum_of_lanes(products));
  for (int64_t column = 0; column < columns; column += kLanes) {
    store(at(column), multiply_add(component, load(unit + column), load(at(column))));
  }
}

void store_rows(const float* panels, int64_t panels_rows, int64_t count, int64_t columns, float scale,
                const MutableMatrix& target, int64_t first) {
  const int64_t bytes = bytes_of(target.type);
  for (int64_t i = 0; i < count; ++i) {
    char* row = static_cast<char*>(row_of(target, first + i));
    for (int64_t column = 0; column < columns; column += kLanes) {
      const float* source =
          panels + (column / kPanelColumns * panels_rows + i) * kPanelColumns + column % kPanelColumns;
      const Vector values = load(source) * broadcast(scale);
      const int64_t left = columns - column;
      if (left >= kLanes) {
        store_downcast(row, target.type, column, values);
      } else {
        alignas(64) char padded[kLanes * sizeof(float)];
        store_downcast(padded, target.type, 0, values);
        __builtin_memcpy(row + column * bytes, padded, left * bytes);
      }
    }
  }
}

void add_rows(const float* panels, int64_t panels_rows, int64_t count, int64_t columns, float scale,
              const MutableMatrix& target, int64_t first) {
  for (int64_t i = 0; i < count; ++i) {
    float* row = static_cast<float*>(row_of(target, first + i));
    for (int64_t column = 0; column < columns; column += kLanes) {
      const float* source =
          panels + (column / kPanelColumns * panels_rows + i) * kPanelColumns + column % kPanelColumns;
      const int64_t left = columns - column;
      const Vector sum =
          multiply_add(load(source), broadcast(scale), load_padded(row, DataType::float32, column, left));
      if (left >= kLanes) {
        store(row + column, sum);
      } else {
        alignas(64) float padded[kLanes];
        store(padded, sum);
        __builtin_memcpy(row + column, padded, left * sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace plr_kernels
