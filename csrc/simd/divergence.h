// Kullback-Leibler divergence within groups of states: the kernels of pairwise_kl, whose equations are in
// ../pairwise_kl.cpp.
//
// A group is `group` consecutive Vectors of states; its 16 lanes are 16 groups. Per item and state: t = s − m with the
// state's largest score m, and the r r = t − mean of t over the group.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "exp2.h"
#include "softmax.h"

namespace plr_kernels {
namespace {

// In place of a score that is not to count: its exponential is 0, and 0 times its r is 0 too.
constexpr float kNoScore = -1e38f;

// Scores of hundreds would round away what a state prefers, so a score counts by its distance t from the state's
// maximum: where a probability matters, that is small. And the mean over a group is taken of differences from the
// group's first state, so that states which agree differ by exactly 0.
struct GroupMean {
  float* first;  // [items, 16]: t of the group's first state
  float* mean;   // [items, 16]: the mean over the group of the differences from it

  // r of an item for t of a state.
  Vector r(Vector t, int64_t item) const { return (t - load(first + item * kLanes)) - load(mean + item * kLanes); }
};

// Of the group that starts at `state`; `memory` has room for 2 · items Vectors.
inline GroupMean group_mean(const Scores& scores, int64_t state, int64_t group, const float* maximum, float* memory) {
  const int64_t items = scores.items;
  const GroupMean result{memory, memory + items * kLanes};
  for (int64_t member = 0; member < group; ++member) {
    const float* column = score_column(scores, state + member * kLanes);
    const Vector m = load(maximum + state + member * kLanes);
    const Vector share = broadcast(member == group - 1 ? 1.0f / static_cast<float>(group) : 1.0f);
    for (int64_t i = 0; i < items; ++i) {
      const Vector t = load(column + i * kPanelColumns) - m;
      if (member == 0) {
        store(result.first + i * kLanes, t);
      } else {
        const Vector difference = t - load(result.first + i * kLanes);
        store(result.mean + i * kLanes,
              (member == 1 ? difference : load(result.mean + i * kLanes) + difference) * share);
      }
    }
  }
  return result;
}

void divergence_statistics(Scores scores, int64_t group, float* memory, const DivergenceStatistics& result) {
  for (int64_t first = 0; first < scores.states; first += group * kLanes) {
    // First reading: m and argmax of every state of the group.
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      const float* column = score_column(scores, state);
      Vector m = load(column), argmax = zero();
      for (int64_t i = 1; i < scores.items; ++i) {
        const Vector score = load(column + i * kPanelColumns);
        argmax = where_greater(score, m, broadcast(static_cast<float>(i)), argmax);
        m = maximum_of(score, m);
      }
      store(result.maximum + state, m);
      store(result.argmax + state, argmax);
    }
    // Second: the mean of t over the group.
    const GroupMean over_group = group_mean(scores, first, group, result.maximum, memory);
    // Third: the sums, without the argmax.
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = score_column(scores, state);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t argmax = static_cast<int64_t>(result.argmax[state + lane]);
        const float t = column[argmax * kPanelColumns + lane] - result.maximum[state + lane];
        const int64_t place = argmax * kLanes + lane;
        result.argmax_r[state + lane] = (t - over_group.first[place]) - over_group.mean[place];
        column[argmax * kPanelColumns + lane] = kNoScore;
      }
      const Vector m = load(result.maximum + state);
      const Vector argmax_r = load(result.argmax_r + state);
      Vector sum_of_rest = zero(), deviation = zero();
      for (int64_t i = 0; i < scores.items; ++i) {
        const Vector t = load(column + i * kPanelColumns) - m;
        const Vector power = exp2(t);
        sum_of_rest = sum_of_rest + power;
        deviation = multiply_add(power, over_group.r(t, i) - argmax_r, deviation);
      }
      store(result.sum_of_rest + state, sum_of_rest);
      store(result.deviation + state, deviation);
    }
  }
}

// Per lane, the mean over the group that starts at `state` of how far the maxima are below the merged ones.
inline Vector mean_rise(const float* maximum, const float* other_maximum, int64_t state, int64_t group) {
  Vector sum = zero();
  for (int64_t member = state; member < state + group * kLanes; member += kLanes) {
    const Vector m = load(maximum + member);
    sum = sum + (maximum_of(load(other_maximum + member), m) - m);
  }
  return sum * broadcast(1.0f / static_cast<float>(group));
}

void merge_divergence(int64_t states, int64_t group, const DivergenceStatistics& other,
                      const DivergenceStatistics& result) {
  const Vector one = broadcast(1.0f);
  for (int64_t first = 0; first < states; first += group * kLanes) {
    const Vector rise = mean_rise(result.maximum, other.maximum, first, group);
    const Vector other_rise = mean_rise(other.maximum, result.maximum, first, group);
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      const Vector m = load(result.maximum + state), other_m = load(other.maximum + state);
      const Vector m_new = maximum_of(other_m, m);
      // r of both argmaxes, with t relative to the merged maxima.
      const Vector r = load(result.argmax_r + state) + (rise - (m_new - m));
      const Vector other_r = load(other.argmax_r + state) + (other_rise - (m_new - other_m));
      // Of two values, that of the part with the larger maximum, whose argmax stays one, and that of the other part.
      const auto of_higher = [&](Vector value, Vector other_value) {
        return where_greater(other_m, m, other_value, value);
      };
      const auto of_lower = [&](Vector value, Vector other_value) { return of_higher(other_value, value); };
      const Vector rest = load(result.sum_of_rest + state), other_rest = load(other.sum_of_rest + state);
      const Vector deviation = load(result.deviation + state);
      const Vector other_deviation = load(other.deviation + state);
      // The lower part's argmax, exp2(0) = 1, joins its rest; all of it shrinks to the merged maximum, and its
      // deviations become relative to the argmax that stays.
      const Vector factor = exp2(of_lower(m, other_m) - m_new);
      const Vector added = (one + of_lower(rest, other_rest)) * factor;
      const Vector argmax_r = of_higher(r, other_r);
      const Vector offset = of_lower(r, other_r) - argmax_r;
      const Vector added_deviation = multiply_add(added, offset, of_lower(deviation, other_deviation) * factor);
      store(result.sum_of_rest + state, of_higher(rest, other_rest) + added);
      store(result.deviation + state, of_higher(deviation, other_deviation) + added_deviation);
      store(result.argmax_r + state, argmax_r);
    }
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      store(result.maximum + state, maximum_of(load(other.maximum + state), load(result.maximum + state)));
    }
  }
}

void divergence_gradient(Scores scores, int64_t group, bool detach_reference, float* memory, const float* maximum,
                         const float* inverse_sum, const float* mean_deviation, float* sums) {
  const int64_t items = scores.items;
  const Vector ln2 = broadcast(0.693147182f);
  const Vector share = broadcast(-1.0f / static_cast<float>(group));
  // [items, 16]: p of the group's first state, and the sum over the group of the differences from it.
  float* first_p = memory + 2 * items * kLanes;
  float* difference_sum = memory + 3 * items * kLanes;
  for (int64_t first = 0; first < scores.states; first += group * kLanes) {
    const GroupMean over_group = group_mean(scores, first, group, maximum, memory);
    // First pass: p (r − r̄) ln 2, plus p − p of the first state.
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = score_column(scores, state);
      const Vector m = load(maximum + state);
      const Vector factor = load(inverse_sum + state);
      const Vector mean = load(mean_deviation + state);
      Vector sum = zero();
      for (int64_t i = 0; i < items; ++i) {
        float* place = column + i * kPanelColumns;
        const Vector t = load(place) - m;
        const Vector p = exp2(t) * factor;
        const Vector gradient = p * ((over_group.r(t, i) - mean) * ln2);
        if (detach_reference) {
          store(place, gradient);
          sum = sum + gradient;
        } else if (state == first) {
          store(place, gradient);
          store(first_p + i * kLanes, p);
          store(difference_sum + i * kLanes, zero());
        } else {
          const Vector difference = p - load(first_p + i * kLanes);
          store(place, gradient + difference);
          store(difference_sum + i * kLanes, load(difference_sum + i * kLanes) + difference);
        }
      }
      store(sums + state, sum);
    }
    if (detach_reference) continue;
    // Second pass: less the mean over the group of p − p of the first state.
    for (int64_t state = first; state < first + group * kLanes; state += kLanes) {
      float* column = score_column(scores, state);
      Vector sum = zero();
      for (int64_t i = 0; i < items; ++i) {
        float* place = column + i * kPanelColumns;
        const Vector gradient = multiply_add(load(difference_sum + i * kLanes), share, load(place));
        store(place, gradient);
        sum = sum + gradient;
      }
      store(sums + state, sum);
    }
  }
}

}  // namespace
}  // namespace plr_kernels
