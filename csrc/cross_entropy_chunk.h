// A chunk of rows of the cross-entropy (score_chunks.h): rows of one state, or of the M states of a mixture, whose loss
// is −log Σ_m exp(log_weights[m]) p_m(target) = −log Σ_m exp(log_weights[m] − CE_m), CE_m the cross-entropy of a state.
// Its gradient w.r.t. CE_m is the responsibility r_m = exp(log_weights[m] − CE_m + loss), and w.r.t. log_weights[m] −r_m.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "buffer.h"
#include "matrix.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_gradients.h"
#include "softmax_statistics.h"
#include "states.h"
#include "target_softmax.h"
#include "targets.h"

namespace plr_kernels {

// `streams` states for each row, one after the other; log_weights and their gradient [rows, streams], null where each
// row has one state that weighs 1. What multiplies all gradients is left to Gradients::scale, but for that of the
// weights, which weights_scale multiplies.
struct CrossEntropyRows {
  const Matrix& states;
  const Matrix& items;
  const int64_t* targets;  // per row
  double temperature;
  float* losses;  // CE of every state
  int64_t streams = 1;
  const float* log_weights = nullptr;
  float* weights_gradient = nullptr;
  double weights_scale = 1.0;
};

class CrossEntropyChunk {
 public:
  const States states;

  // Of some rows that count.
  CrossEntropyChunk(const Context& context, const CrossEntropyRows& all, std::vector<int64_t> rows, int64_t batch)
      : states(pack_states(context, all.states, states_of(rows, all.streams), kLog2E / all.temperature,
                           takes_pairs(context, all.states, all.items))),
        context_(context),
        all_(all),
        rows_(std::move(rows)),
        targets_(states.order, all.targets, all.streams),
        target_scores_(states.count, 0.0f),
        block_maximum_(batch * states.count),
        block_sum_(batch * states.count),
        parts_(all.items.rows),
        rest_(parts_.count, states.count),
        maximum_(states.count, 0.0f),
        inverse_sum_(states.count, 0.0f),
        prob_of_rest_(states.count, 0.0f),
        grad_scale_(states.count, 0.0f) {}

  void visit(int64_t index, const ScoreBlock& block) {
    targets_.visit(block, [&](int64_t state, float& score) {
      target_scores_[state] = score;
      score = -std::numeric_limits<float>::infinity();
    });
    const int64_t first = index * states.count + block.first_state;
    SoftmaxStatistics::of_block(context_.kernels, block, block_maximum_.data() + first, block_sum_.data() + first);
  }

  void merge(int64_t index, int64_t number) {
    const int64_t first = index * states.count;
    rest_.add(context_.kernels, parts_.of_block(number), block_maximum_.data() + first, block_sum_.data() + first);
  }

  void finish() {
    rest_.merge(context_.kernels);
    std::vector<double> losses(all_.streams);
    for (int64_t i = 0; i < static_cast<int64_t>(rows_.size()); ++i) {
      for (int64_t m = 0; m < all_.streams; ++m) {
        const int64_t state = i * all_.streams + m;
        const TargetSoftmax softmax = with_target(rest_.maximum(state), rest_.sum(state), target_scores_[state]);
        losses[m] = softmax.loss;
        all_.losses[states.order[state]] = static_cast<float>(softmax.loss);
        maximum_[state] = softmax.maximum;
        inverse_sum_[state] = softmax.inverse_sum;
        prob_of_rest_[state] = softmax.prob_of_rest;
        grad_scale_[state] = 1.0f;
      }
      if (all_.log_weights != nullptr) weigh(i, losses);
    }
  }

  void to_gradient(const ScoreBlock& block) const {
    context_.kernels.softmax_gradient(block, maximum_.data() + block.first_state,
                                      inverse_sum_.data() + block.first_state, grad_scale_.data() + block.first_state);
    targets_.visit(block,
                   [&](int64_t state, float& gradient) { gradient = -grad_scale_[state] * prob_of_rest_[state]; });
    clear_padding(states, block);
  }

  void stored(const MutableMatrix&) const {}

 private:
  static Order states_of(const std::vector<int64_t>& rows, int64_t streams) {
    std::vector<int64_t> states;
    for (const int64_t row : rows) {
      for (int64_t m = 0; m < streams; ++m) states.push_back(row * streams + m);
    }
    return listed_order(std::move(states));
  }

  // The responsibilities of the states of the chunk's row i, from their losses.
  void weigh(int64_t i, const std::vector<double>& losses) {
    const float* log_weights = all_.log_weights + rows_[i] * all_.streams;
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t m = 0; m < all_.streams; ++m) largest = std::max(largest, log_weights[m] - losses[m]);
    if (!std::isfinite(largest)) largest = 0.0;
    double sum = 0.0;
    for (int64_t m = 0; m < all_.streams; ++m) sum += std::exp(log_weights[m] - losses[m] - largest);
    const double log_p = largest + std::log(sum);
    for (int64_t m = 0; m < all_.streams; ++m) {
      const double responsibility = std::exp(log_weights[m] - losses[m] - log_p);
      grad_scale_[i * all_.streams + m] = static_cast<float>(responsibility);
      if (all_.weights_gradient != nullptr) {
        all_.weights_gradient[rows_[i] * all_.streams + m] = static_cast<float>(-responsibility * all_.weights_scale);
      }
    }
  }

  const Context& context_;
  const CrossEntropyRows& all_;
  const std::vector<int64_t> rows_;
  const Targets targets_;
  Buffer target_scores_, block_maximum_, block_sum_;
  const ItemChunks parts_;
  SoftmaxStatistics rest_;
  Buffer maximum_, inverse_sum_, prob_of_rest_, grad_scale_;
};

}  // namespace plr_kernels
