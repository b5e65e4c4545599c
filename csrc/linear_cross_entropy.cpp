// Cross-entropy of each state's target among all items. With p = softmax(s) over the items, the gradient w.r.t. the
// logits of a row is g (p − [item = target]), g the gradient w.r.t. the row's loss.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "buffer.h"
#include "cross_entropy_chunk.h"
#include "mixture_loss.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_chunks.h"
#include "score_gradients.h"
#include "states.h"
#include "target_softmax.h"
#include "targets.h"

namespace plr_kernels {

namespace {

States pack_counted(const Context& context, const Matrix& states, const int64_t* targets, double temperature,
                    int64_t ignore_index, Arithmetic arithmetic) {
  return pack_states(context, states, listed_order(counted_rows(targets, states.rows, ignore_index)),
                     kLog2E / temperature, arithmetic);
}

double largest_magnitude(const float* numbers, int64_t count) {
  double largest = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const double magnitude = std::abs(static_cast<double>(numbers[i]));
    if (!(magnitude <= largest)) largest = magnitude;
    if (std::isnan(largest)) break;
  }
  return largest;
}

}  // namespace

void linear_cross_entropy_forward(const Context& context, const Matrix& matrix, const Matrix& items,
                                  const int64_t* targets, double temperature, int64_t ignore_index, float* losses,
                                  float* statistics) {
  const States states = pack_counted(context, matrix, targets, temperature, ignore_index,
                                     choose_arithmetic(context, matrix, items, kLog2E / temperature));
  const int64_t rows = matrix.rows;
  std::fill_n(losses, rows, 0.0f);
  std::fill_n(statistics, TargetStatistics<float>::columns * rows, 0.0f);
  const auto kept = TargetStatistics<float>::of(statistics, rows);
  visit_target_softmax(context, states, items, Targets(states.order, targets),
                       [&](int64_t state, const TargetSoftmax& softmax) {
                         const int64_t row = states.order[state];
                         losses[row] = static_cast<float>(softmax.loss);
                         softmax.store(row, kept);
                       });
}

void linear_cross_entropy_backward(const Context& context, const Matrix& matrix, const Matrix& items,
                                   const int64_t* targets, double temperature, int64_t ignore_index,
                                   const float* statistics, const float* losses_gradient,
                                   const MutableMatrix* states_gradient, const MutableMatrix* items_gradient) {
  const Arithmetic arithmetic = choose_arithmetic(context, matrix, items, kLog2E / temperature);
  const States states = pack_counted(context, matrix, targets, temperature, ignore_index,
                                     within(arithmetic, largest_magnitude(losses_gradient, matrix.rows)));
  const auto kept = TargetStatistics<const float>::of(statistics, matrix.rows);
  const Buffer maximum = packed_column(states, kept.maximum), inverse_sum = packed_column(states, kept.inverse_sum);
  const Buffer prob_of_rest = packed_column(states, kept.prob_of_rest);
  const Buffer grad_scale = packed_column(states, losses_gradient);
  const Targets by_item(states.order, targets);
  const float scale = static_cast<float>(1.0 / temperature);
  backward_through_scores(
      context, states, matrix, items, kPanelColumns, {states_gradient, items_gradient, scale},
      [&](const ScoreBlock& block) {
        context.kernels.softmax_gradient(block, maximum.data() + block.first_state,
                                         inverse_sum.data() + block.first_state, grad_scale.data() + block.first_state);
        by_item.visit(block,
                      [&](int64_t state, float& gradient) { gradient = -grad_scale[state] * prob_of_rest[state]; });
        clear_padding(states.order, block);
      });
}

void cross_entropy_gradients(const Context& context, const Matrix& states, const Matrix& items, const int64_t* targets,
                             int64_t streams, const float* log_weights, double temperature, int64_t ignore_index,
                             bool mean, int64_t chunk_states, float* losses, const MutableMatrix* states_gradient,
                             float* weights_gradient, const MutableMatrix* items_gradient) {
  const std::vector<int64_t> counted = counted_rows(targets, states.rows / streams, ignore_index);
  const int64_t rows = static_cast<int64_t>(counted.size());
  const double weight = mean && rows > 0 ? 1.0 / static_cast<double>(rows) : 1.0;
  std::fill_n(losses, states.rows, 0.0f);
  if (weights_gradient != nullptr) std::fill_n(weights_gradient, states.rows, 0.0f);
  const CrossEntropyRows all{states,      items,
                             targets,     temperature,
                             losses,      streams,
                             log_weights, weights_gradient,
                             weight,      choose_arithmetic(context, states, items, kLog2E / temperature)};
  const int64_t chunks = divided_up(rows, std::max<int64_t>(1, chunk_states / streams));
  const int64_t largest = chunks == 0 ? 0 : round_up(divided_up(rows, chunks) * streams, kPanelColumns);
  const Gradients gradients{states_gradient, items_gradient, static_cast<float>(weight / temperature)};
  sweep_chunks({context, states, items, kPanelColumns, all.arithmetic, gradients}, chunks, largest,
               [&](int64_t number) {
                 std::vector<int64_t> chunk(counted.begin() + rows * number / chunks,
                                            counted.begin() + rows * (number + 1) / chunks);
                 return std::make_unique<CrossEntropyChunk>(context, all, std::move(chunk));
               });
}

}  // namespace plr_kernels
