// Softmax of every state over the items, with one item apart: the state's target.
//
// The sums leave the target out, so that where it wins by far, the loss log(1 + Σ rest / target) and the gradient at
// the target, minus the probability of the rest, are as accurate as elsewhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "softmax_statistics.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

// What the backward pass needs of every row: the columns of its statistics [3, rows].
template <class Number>
struct TargetStatistics {
  Number* maximum;       // the largest score m, or a bound of it
  Number* inverse_sum;   // 1 / Σ exp2(s − m)
  Number* prob_of_rest;  // the probability of all items but the target

  static constexpr int64_t columns = 3;

  // From row `first_row` on.
  static TargetStatistics of(Number* statistics, int64_t rows, int64_t first_row = 0) {
    Number* start = statistics + first_row;
    return {start, start + rows, start + 2 * rows};
  }
};

struct TargetSoftmax {
  double loss;  // −log of the target's probability
  float maximum, inverse_sum, prob_of_rest;

  void store(int64_t row, const TargetStatistics<float>& statistics) const {
    statistics.maximum[row] = maximum;
    statistics.inverse_sum[row] = inverse_sum;
    statistics.prob_of_rest[row] = prob_of_rest;
  }
};

// From the largest score and the sum over all items but the target, and the target's score. NaN, as in the reference,
// where a score is NaN or +inf, or all are -inf.
inline TargetSoftmax with_target(double rest_maximum, double rest_sum, double target_score) {
  const double maximum = std::max(rest_maximum, target_score);
  const double below = maximum - target_score;  // NaN where the target's score is +inf
  const double rest = rest_sum * std::exp2(rest_maximum - maximum);
  const double sum = rest + std::exp2(target_score - maximum);
  // Σ rest / target may overflow, the difference of scores does not.
  const double loss = below == 0.0 ? std::log1p(rest) : below * kLn2 + std::log(sum);
  return {loss, static_cast<float>(maximum), static_cast<float>(1.0 / sum), static_cast<float>(rest / sum)};
}

// Calls visit(state, softmax) with the TargetSoftmax of every state that is a row, in their order. One sweep over the
// items; leave_out(block) may set scores to -inf, those of items that do not count.
template <class LeaveOut, class Visit>
void visit_target_softmax(const Context& context, const States& states, const Matrix& items, const Targets& targets,
                          const LeaveOut& leave_out, const Visit& visit) {
  Buffer target_scores(states.count);
  SoftmaxStatistics rest(ItemChunks(items.rows).count, states.count);
  visit_scores(context, states, items, kPanelColumns, [&](int64_t chunk, const ScoreBlock& block) {
    targets.visit(block, [&](int64_t state, float& score) {
      target_scores[state] = score;
      score = -std::numeric_limits<float>::infinity();
    });
    leave_out(block);
    rest.update(context.kernels, chunk, block);
  });
  rest.merge(context.kernels);
  for (int64_t state = 0; state < states.count; ++state) {
    if (states.order[state] < 0) continue;
    visit(state, with_target(rest.maximum(state), rest.sum(state), target_scores[state]));
  }
}

// All items count.
template <class Visit>
void visit_target_softmax(const Context& context, const States& states, const Matrix& items, const Targets& targets,
                          const Visit& visit) {
  visit_target_softmax(context, states, items, targets, [](const ScoreBlock&) {}, visit);
}

}  // namespace plr_kernels
