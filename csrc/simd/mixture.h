// Mixtures of softmax distributions, of scores as products leave them. Exponents are differences of scores, then scaled:
// the other way round large scores lose their last digits, or overflow.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "exp2.h"

namespace plr_kernels {
namespace {

void update_lane_softmax(const float* scores, int64_t step, int64_t vectors, float scale, float* maximum, float* sum) {
  const Vector factor = broadcast(scale);
  const Vector m = load(maximum);
  // Two chains, so that one need not wait for the other.
  Vector even = m, odd = m;
  int64_t v = 0;
  for (; v + 1 < vectors; v += 2) {
    even = maximum_of(load(scores + v * step), even);
    odd = maximum_of(load(scores + (v + 1) * step), odd);
  }
  if (v < vectors) even = maximum_of(load(scores + v * step), even);
  const Vector m_new = maximum_of(even, odd);
  Vector added = zero();
  for (int64_t i = 0; i < vectors; ++i) added = added + exp2((load(scores + i * step) - m_new) * factor);
  store(maximum, m_new);
  store(sum, multiply_add(load(sum), exp2((m - m_new) * factor), added));
}

void mix_streams(const float* const* streams_scores, int64_t streams, int64_t step, int64_t vectors, float scale,
                 const float* anchors, float* result, float* not_finite) {
  const Vector factor = broadcast(scale), none = zero(), least = broadcast(-126.0f), most = broadcast(100.0f);
  Vector wrong = load(not_finite);
  for (int64_t v = 0; v < vectors; ++v) {
    Vector sum = zero(), best = broadcast(-__builtin_inff());
    for (int64_t m = 0; m < streams; ++m) {
      const float* anchor = anchors + m * kAnchorNumbers * kLanes;
      const Vector distance = load(streams_scores[m] + v * step) - load(anchor);
      best = maximum_of(distance, best);
      const Vector exponent = maximum_of(least, distance * factor);  // the second one where either is NaN
      sum = multiply_add(load(anchor + kLanes), exp2_less(where_greater(exponent, most, most, exponent),
                                                          load(anchor + 2 * kLanes)), sum);
    }
    wrong = multiply_add(best, none, wrong);  // 0, or NaN where all streams are at −∞ or one is at +∞
    store(result + v * kLanes, sum);
  }
  store(not_finite, wrong);
}

}  // namespace
}  // namespace plr_kernels
