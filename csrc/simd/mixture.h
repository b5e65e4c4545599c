// Mixtures of softmax distributions, of scores as products leave them. In units of log2: t = score · scale.
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
    even = maximum_of(load(scores + v * step) * factor, even);
    odd = maximum_of(load(scores + (v + 1) * step) * factor, odd);
  }
  if (v < vectors) even = maximum_of(load(scores + v * step) * factor, even);
  const Vector m_new = maximum_of(even, odd);
  Vector added = zero();
  for (int64_t i = 0; i < vectors; ++i) added = added + exp2(load(scores + i * step) * factor - m_new);
  store(maximum, m_new);
  store(sum, multiply_add(load(sum), exp2(m - m_new), added));
}

void mix_streams(const float* const* streams_scores, int64_t streams, int64_t step, int64_t vectors, float scale,
                 const float* offsets, float* result, float* not_finite) {
  const Vector factor = broadcast(scale), none = zero(), largest = broadcast(100.0f);
  Vector wrong = load(not_finite);
  for (int64_t v = 0; v < vectors; ++v) {
    Vector sum = zero();
    for (int64_t m = 0; m < streams; ++m) {
      const Vector t = load(streams_scores[m] + v * step) * factor;
      const Vector exponent = t + load(offsets + m * kLanes);
      wrong = multiply_add(t, none, wrong);  // 0, or NaN
      sum = sum + exp2(where_greater(exponent, largest, largest, exponent));
    }
    store(result + v * kLanes, sum);
  }
  store(not_finite, wrong);
}

}  // namespace
}  // namespace plr_kernels
