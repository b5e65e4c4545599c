// Softmax of the same scores [items, states] both ways, over items and over states: the kernels of info_nce.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "exp2.h"
#include "softmax.h"

namespace plr_kernels {
namespace {

void update_two_way_sums(Scores scores, float bound, const float* mask, float* state_sum, float* item_sum) {
  const Vector maximum = broadcast(bound);
  for (int64_t state = 0; state < scores.states; state += kLanes) {
    const float* column = score_column(scores, state);
    const Vector counts = load(mask + state);
    Vector added = zero();
    for (int64_t i = 0; i < scores.items; ++i) {
      const Vector power = exp2(load(column + i * kPanelColumns) - maximum);
      added = added + power;
      store(item_sum + i * kLanes, multiply_add(power, counts, load(item_sum + i * kLanes)));
    }
    store(state_sum + state, load(state_sum + state) + added);
  }
}

void two_way_softmax_gradient(Scores scores, const float* state_maximum, const float* state_inverse_sum,
                              const float* item_maximum, const float* item_inverse_sum, const float* mask) {
  for (int64_t state = 0; state < scores.states; state += kLanes) {
    float* column = score_column(scores, state);
    const Vector m = load(state_maximum + state);
    const Vector factor = load(state_inverse_sum + state);
    const Vector counts = load(mask + state);
    if (item_maximum == nullptr) {  // one exponential serves both softmaxes
      for (int64_t i = 0; i < scores.items; ++i) {
        float* place = column + i * kPanelColumns;
        store(place, exp2(load(place) - m) * (factor + broadcast(item_inverse_sum[i])) * counts);
      }
      continue;
    }
    for (int64_t i = 0; i < scores.items; ++i) {
      float* place = column + i * kPanelColumns;
      const Vector score = load(place);
      const Vector over_items = exp2(score - m) * factor;
      // The mask here too: a state that does not count may lie above the maximum of those that do, without bound.
      const Vector over_states = exp2((score - broadcast(item_maximum[i])) * counts) * broadcast(item_inverse_sum[i]);
      store(place, (over_items + over_states) * counts);
    }
  }
}

}  // namespace
}  // namespace plr_kernels
