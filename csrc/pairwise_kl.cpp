// Mean Kullback-Leibler divergence within groups of states.
//
// With r_i(v) = s_i(v) − mean_j s_j(v), the loss is Σ_i Σ_v p_i(v) r_i(v) / (batch (group − 1)), and its gradient by the
// logits s_i(v) is [p_i (r_i − r̄_i + 1) − mean_j p_j] / (batch (group − 1)) with r̄_i = Σ_v p_i r_i. Where the reference
// p_j is detached, the terms "+ p_i − mean_j p_j" are missing.
#include <algorithm>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "softmax_statistics.h"
#include "states.h"

namespace plr_kernels {

namespace {

States packed(const Run& run, const Matrix& states, int64_t group, double temperature) {
  return pack_states(run.kernels, states, grouped_order(states.rows / group, group), kLog2E / temperature,
                     run.threads);
}

// The part of a block's states that are whole groups; a half panel after the last group holds none.
int64_t whole_groups(int64_t states, int64_t group) { return states / (group * kLanes) * (group * kLanes); }

}  // namespace

double pairwise_kl_forward(const Run& run, const Matrix& matrix, int64_t group, const Matrix& items,
                           double temperature, float* statistics) {
  const States states = packed(run, matrix, group, temperature);
  const ItemChunks chunks(items.rows);
  SoftmaxStatistics softmax(chunks.count, states.count, true);
  Buffer mean(chunks.block * kLanes * run.threads.count());
  visit_scores(run.kernels, states, items, group * kLanes, run.threads, [&](int64_t chunk, const ScoreBlock& block) {
    run.kernels.update_divergence(block.scores, block.scores_rows, block.items, whole_groups(block.states, group),
                                  group, mean.data() + block.thread * chunks.block * kLanes,
                                  softmax.maximum(chunk) + block.first_state, softmax.sum(chunk) + block.first_state,
                                  softmax.deviation(chunk) + block.first_state);
  });
  softmax.merge(run.kernels);
  const int64_t rows = matrix.rows;
  double total = 0.0;
  for (int64_t i = 0; i < states.count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    const float mean_deviation = softmax.deviation()[i] / softmax.sum()[i];
    statistics[row] = softmax.maximum()[i];
    statistics[rows + row] = 1.0f / softmax.sum()[i];
    statistics[2 * rows + row] = mean_deviation;
    total += mean_deviation;
  }
  return total * kLn2 / (static_cast<double>(rows / group) * static_cast<double>(group - 1));
}

void pairwise_kl_backward(const Run& run, const Matrix& matrix, int64_t group, const Matrix& items, double temperature,
                          bool detach_reference, const float* statistics, double weight,
                          const MutableMatrix* states_gradient, const MutableMatrix* items_gradient) {
  const States states = packed(run, matrix, group, temperature);
  const int64_t rows = matrix.rows;
  Buffer packed_statistics(3 * states.count, 0.0f);
  for (int64_t i = 0; i < states.count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    for (int64_t kind = 0; kind < 3; ++kind) {
      packed_statistics[kind * states.count + i] = statistics[kind * rows + row];
    }
  }
  const float* maximum = packed_statistics.data();
  const float* inverse_sum = maximum + states.count;
  const float* mean_deviation = inverse_sum + states.count;
  const int64_t mean_size = 2 * items_per_block(items.rows) * kLanes;
  Buffer mean(mean_size * run.threads.count());
  const float scale = static_cast<float>(
      weight / temperature / (static_cast<double>(rows / group) * static_cast<double>(group - 1)));
  backward_through_scores(run.kernels, states, items, rows, group * kLanes,
                          {states_gradient, scale, items_gradient, scale}, run.threads, [&](const ScoreBlock& block) {
                            run.kernels.divergence_gradient(
                                block.scores, block.scores_rows, block.items, whole_groups(block.states, group),
                                group, detach_reference, mean.data() + block.thread * mean_size,
                                maximum + block.first_state, inverse_sum + block.first_state,
                                mean_deviation + block.first_state);
                          });
}

}  // namespace plr_kernels
