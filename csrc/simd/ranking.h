// Scores against bounds: the selection of the best, and counts of what is above and below.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels.h"
#include "common.h"

namespace plr_kernels {
namespace {

int64_t find_above(const float* scores, int64_t step, int64_t vectors, const float* bounds, uint32_t* found) {
  const Vector bound = load(bounds);
  int64_t count = 0;
  for (int64_t v = 0; v < vectors; ++v) {
    // Seldom any: of random scores the n-th is among the k best so far with probability k / n.
    for (uint32_t lanes = not_at_most(load(scores + v * step), bound); lanes != 0; lanes &= lanes - 1) {
      found[count++] = static_cast<uint32_t>(v * kLanes + __builtin_ctz(lanes));
    }
  }
  return count;
}

void count_against(const float* scores, int64_t step, int64_t vectors, const float* bar, float* greater, float* less,
                   float* not_finite) {
  const Vector bound = load(bar), one = broadcast(1.0f), none = zero();
  Vector above = load(greater), below = load(less), wrong = load(not_finite);
  for (int64_t v = 0; v < vectors; ++v) {
    const Vector score = load(scores + v * step);
    above = above + where_greater(score, bound, one, none);
    below = below + where_greater(bound, score, one, none);
    wrong = multiply_add(score, none, wrong);  // 0, or NaN
  }
  store(greater, above);
  store(less, below);
  store(not_finite, wrong);
}

// Each key's place is the number of larger ones: more comparisons than sorting takes, but none that is mispredicted.
void rank(int64_t* keys, int64_t count, int64_t k) {
  using Keys = int64_t __attribute__((vector_size(kKeyLanes * sizeof(int64_t))));
  constexpr int registers = 4;
  constexpr int64_t together = registers * kKeyLanes;
  int64_t unsorted[kMostRanked + together];
  __builtin_memcpy(unsorted, keys, static_cast<std::size_t>(count) * sizeof(int64_t));
  __builtin_memset(unsorted + count, 0, together * sizeof(int64_t));
  for (int64_t i = 0; i < count; i += together) {
    Keys mine[registers], places[registers];
    __builtin_memcpy(mine, unsorted + i, sizeof(mine));
#pragma GCC unroll 4
    for (int r = 0; r < registers; ++r) places[r] = Keys{};
    for (int64_t j = 0; j < count; ++j) {
#pragma GCC unroll 4
      for (int r = 0; r < registers; ++r) places[r] -= unsorted[j] > mine[r];  // true is -1
    }
    int64_t place[together];
    __builtin_memcpy(place, places, sizeof(place));
    for (int64_t lane = 0; lane < smaller(together, count - i); ++lane) {
      if (place[lane] < k) keys[place[lane]] = unsorted[i + lane];
    }
  }
}

}  // namespace
}  // namespace plr_kernels
