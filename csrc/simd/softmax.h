// Softmax over the items of every state, block of scores by block of scores. Scores are logits times log2(e).
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "exp2.h"

namespace plr_kernels {
namespace {

// The scores of the 16 states in one Vector, `state` the first of them: those of item i at [i * kPanelColumns].
inline float* score_column(const Scores& scores, int64_t state) {
  return scores.data + state / kPanelColumns * scores.rows * kPanelColumns + state % kPanelColumns;
}

// Per lane, the largest of a column's scores and of `start`.
inline Vector column_maximum(const float* column, int64_t items, Vector start) {
  // Two chains, so that one need not wait for the other.
  Vector even = start, odd = start;
  int64_t i = 0;
  for (; i + 1 < items; i += 2) {
    even = maximum_of(load(column + i * kPanelColumns), even);
    odd = maximum_of(load(column + (i + 1) * kPanelColumns), odd);
  }
  if (i < items) even = maximum_of(load(column + i * kPanelColumns), even);
  return maximum_of(even, odd);
}

// m_new = max(m, max s), sum -> sum · exp2(m − m_new) + Σ exp2(s − m_new).
void update_softmax(Scores scores, float* maximum, float* sum) {
  for (int64_t state = 0; state < scores.states; state += kLanes) {
    const float* column = score_column(scores, state);
    const Vector m = load(maximum + state);
    const Vector m_new = column_maximum(column, scores.items, m);
    Vector added = zero();
    for (int64_t i = 0; i < scores.items; ++i) added = added + exp2(load(column + i * kPanelColumns) - m_new);
    store(maximum + state, m_new);
    store(sum + state, multiply_add(load(sum + state), exp2(m - m_new), added));
  }
}

void merge_softmax(int64_t states, const float* other_maximum, const float* other_sum, float* maximum, float* sum) {
  for (int64_t state = 0; state < states; state += kLanes) {
    const Vector m_new = maximum_of(load(other_maximum + state), load(maximum + state));
    const Vector factor = exp2(load(maximum + state) - m_new);
    const Vector other_factor = exp2(load(other_maximum + state) - m_new);
    store(sum + state, multiply_add(load(sum + state), factor, load(other_sum + state) * other_factor));
    store(maximum + state, m_new);
  }
}

void softmax_gradient(Scores scores, const float* maximum, const float* inverse_sum, const float* grad_scale) {
  for (int64_t state = 0; state < scores.states; state += kLanes) {
    float* column = score_column(scores, state);
    const Vector m = load(maximum + state);
    const Vector factor = load(inverse_sum + state) * load(grad_scale + state);
    for (int64_t i = 0; i < scores.items; ++i) {
      float* place = column + i * kPanelColumns;
      store(place, exp2(load(place) - m) * factor);
    }
  }
}

}  // namespace
}  // namespace plr_kernels
