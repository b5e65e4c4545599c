// Cross-entropy of each state's target among all items. The gradient by the logits of a row is weight · (p − [target]).
//
// The sums leave the target out, so that where it wins by far, the loss log(1 + Σ others / target) and the gradient at the
// target, −weight · (the others' probability), are as accurate as elsewhere.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "softmax_statistics.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

namespace {

States packed(const Run& run, const Matrix& states, const Matrix& items, const int64_t* targets, double temperature,
              int64_t ignore_index) {
  std::vector<int64_t> counted;
  for (int64_t row = 0; row < states.rows; ++row) {
    if (targets[row] != ignore_index) counted.push_back(row);
  }
  return pack_states(run.kernels, states, listed_order(std::move(counted)), kLog2E / temperature,
                     takes_pairs(run, states, items), run.threads);
}

}  // namespace

void linear_cross_entropy_forward(const Run& run, const Matrix& matrix, const Matrix& items, const int64_t* targets,
                                  double temperature, int64_t ignore_index, float* losses, float* statistics) {
  const States states = packed(run, matrix, items, targets, temperature, ignore_index);
  const int64_t rows = matrix.rows;
  std::fill_n(losses, rows, 0.0f);
  std::fill_n(statistics, 3 * rows, 0.0f);
  const Targets by_item(states.order, targets);
  Buffer target_scores(states.count);
  SoftmaxStatistics softmax(ItemChunks(items.rows).count, states.count);
  visit_scores(run.kernels, states, items, kPanelColumns, run.threads, [&](int64_t chunk, const ScoreBlock& block) {
    by_item.visit(block, [&](int64_t state, float& score) {
      target_scores[state] = score;
      score = std::numeric_limits<float>::lowest();  // finite: there may be no other item
    });
    run.kernels.update_softmax(block.scores, block.scores_rows, block.items, block.states,
                               softmax.maximum(chunk) + block.first_state, softmax.sum(chunk) + block.first_state);
  });
  softmax.merge(run.kernels);
  for (int64_t i = 0; i < states.count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    const auto [loss, maximum, inverse_sum, others] =
        with_target(softmax.maximum()[i], softmax.sum()[i], target_scores[i]);
    losses[row] = static_cast<float>(loss);
    statistics[row] = maximum;
    statistics[rows + row] = inverse_sum;
    statistics[2 * rows + row] = others;
  }
}

void linear_cross_entropy_backward(const Run& run, const Matrix& matrix, const Matrix& items, const int64_t* targets,
                                   double temperature, int64_t ignore_index, const float* statistics,
                                   const float* losses_gradient, const MutableMatrix* states_gradient,
                                   const MutableMatrix* items_gradient) {
  const States states = packed(run, matrix, items, targets, temperature, ignore_index);
  const int64_t rows = matrix.rows;
  Buffer maximum(states.count, 0.0f), inverse_sum(states.count, 0.0f), others(states.count, 0.0f);
  Buffer weight(states.count, 0.0f);
  for (int64_t i = 0; i < states.count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    maximum[i] = statistics[row];
    inverse_sum[i] = statistics[rows + row];
    others[i] = statistics[2 * rows + row];
    weight[i] = losses_gradient[row];
  }
  const Targets by_item(states.order, targets);
  const float scale = static_cast<float>(1.0 / temperature);
  backward_through_scores(run.kernels, states, matrix, items, kPanelColumns,
                          {states_gradient, scale, items_gradient, scale}, run.threads, [&](const ScoreBlock& block) {
                            run.kernels.softmax_gradient(block.scores, block.scores_rows, block.items, block.states,
                                                         maximum.data() + block.first_state,
                                                         inverse_sum.data() + block.first_state,
                                                         weight.data() + block.first_state);
                            by_item.visit(block, [&](int64_t state, float& gradient) {
                              gradient = -weight[state] * others[state];
                            });
                          });
}

}  // namespace plr_kernels
