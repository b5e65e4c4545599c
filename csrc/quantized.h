// Items as 8-bit integers and states as 16-bit integers: what the inner loop of a quantised sweep reads.
#pragma once

#include <cstdint>

#include "panels.h"

namespace plr_kernels {

constexpr int64_t kQuad = 4;  // columns of an item that stand side by side

constexpr int64_t quads(int64_t dim) { return (dim + kQuad - 1) / kQuad; }

// A group of sixteen items: bytes [D / 4][16][4], unsigned, 128 + q each, and the items' scales as float32 [16]. Numbers
// of columns beyond the last one are multiplied by zero.
constexpr int64_t quantized_group_bytes(int64_t dim) {
  return quads(dim) * kQuad * kLanes + kLanes * static_cast<int64_t>(sizeof(float));
}

// Groups one after the other, and the radius of each in units of its items' scales.
struct QuantizedGroups {
  const uint8_t* data;
  const float* radii;
  int64_t dim;

  const uint8_t* group(int64_t index) const { return data + index * quantized_group_bytes(dim); }
  const float* scales(int64_t index) const {
    return reinterpret_cast<const float*>(group(index) + quads(dim) * kQuad * kLanes);
  }
};

// A state as integers [D / 4][4], number = 256 · high + low, and what makes a bound of its product with an item.
struct QuantizedState {
  const int16_t* numbers;
  const int8_t* high;
  const int8_t* low;
  uint32_t correction;  // −128 Σ numbers; sums are modulo 2**32
  float scale;
  float norm;
};

}  // namespace plr_kernels
