// Attention of a few queries to a prefix and to entries of their own, one head.
#pragma once

#include <cstdint>

#include "../../encoder.h"
#include "../common.h"
#include "../exp2.h"
#include "../gemm.h"
#include "norm.h"

namespace plr_kernels {
namespace {

// The dot product of row i of two matrices with `dim` columns and zeros from there up to a multiple of 16.
inline float row_dot(const Panels& a, const Panels& b, int64_t i, int64_t dim) {
  Vector sum = zero();
  for (int64_t column = 0; column < dim; column += kLanes) {
    const int64_t panel = column / kPanelColumns, rest = column % kPanelColumns;
    sum = multiply_add(load(a.data + (panel * a.rows + i) * kPanelColumns + rest),
                       load(b.data + (panel * b.rows + i) * kPanelColumns + rest), sum);
  }
  return sum_of_lanes(sum);
}

// Scores of query i of the call, in place -> exp2(score − maximum); returns the inverse of their sum.
inline float softmax_of_query(const AttendCall& call, int64_t i, float* suffix) {
  const int64_t vectors = (call.keys + kLanes - 1) / kLanes;
  const int64_t readable = call.causal ? call.keys - (call.rows - 1 - i) : call.keys;
  const Vector lowest = broadcast(-1e30f);  // no infinity comes in between, and exp2 gives 0 with any maximum
  const auto place = [&](int64_t v) { return call.memory + (v / 2 * kQueryRows + i) * kPanelColumns + v % 2 * kLanes; };
  Vector largest = lowest;
  for (int64_t v = 0; v < vectors; ++v) {
    const Vector score = first_lanes(load(place(v)), readable - v * kLanes, lowest);
    store(place(v), score);
    largest = maximum_of(score, largest);
  }
  for (int64_t s = 0; s < call.suffix; s += kLanes) {
    store(suffix + s, lowest);
    const int64_t end = smaller(call.suffix, s + kLanes);
    for (int64_t j = s; j < end; ++j) suffix[j] = row_dot(call.query, call.suffix_key[j], i, call.dim) * call.scale;
    largest = maximum_of(load(suffix + s), largest);
  }
  const Vector maximum = broadcast(largest_lane(largest));
  Vector sum = zero();
  const auto exponentials = [&](float* scores) {
    const Vector p = exp2(load(scores) - maximum);
    store(scores, p);
    sum = sum + p;
  };
  for (int64_t v = 0; v < vectors; ++v) exponentials(place(v));
  for (int64_t s = 0; s < call.suffix; s += kLanes) exponentials(suffix + s);
  return 1.0f / sum_of_lanes(sum);
}

void attend(const AttendCall& call) {
  const int64_t step = head_step(call.dim), suffix_size = round_up(call.suffix, kLanes);
  float* suffix = call.memory + panels_size(kQueryRows, call.keys);
  float inverse_sums[kQueryRows];
  gemm<Singles>(call.rows, round_up(call.keys, kLanes), call.dim, call.query, {call.key, call.dim}, call.scale, false,
                {call.memory, kQueryRows});
  for (int64_t i = 0; i < call.rows; ++i) inverse_sums[i] = softmax_of_query(call, i, suffix + i * suffix_size);
  gemm<Singles>(call.rows, step, call.keys, {call.memory, kQueryRows}, call.value, 1.0f, false, call.output);
  for (int64_t i = 0; i < call.rows; ++i) {
    for (int64_t column = 0; column < step; column += kLanes) {
      const int64_t panel = column / kPanelColumns, rest = column % kPanelColumns;
      float* target = call.output.data + (panel * call.output.rows + i) * kPanelColumns + rest;
      Vector sum = load(target);
      for (int64_t s = 0; s < call.suffix; ++s) {
        const Panels& value = call.suffix_value[s];
        sum = multiply_add(broadcast(suffix[i * suffix_size + s]),
                           load(value.data + (panel * value.rows + i) * kPanelColumns + rest), sum);
      }
      store(target, sum * broadcast(inverse_sums[i]));
    }
  }
}

}  // namespace
}  // namespace plr_kernels
