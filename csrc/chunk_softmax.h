// Softmax with a target over all items, of the states of a chunk (score_chunks.h) that `visit` sees every block of scores
// of; and its gradient.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_gradients.h"
#include "softmax_statistics.h"
#include "states.h"
#include "target_softmax.h"
#include "targets.h"

namespace plr_kernels {

class ChunkSoftmax {
 public:
  // States in a `listed_order`; targets per `streams` consecutive rows.
  ChunkSoftmax(const Context& context, int64_t items, Order order, const int64_t* targets, int64_t streams)
      : context_(context),
        order_(std::move(order)),
        count_(static_cast<int64_t>(order_.size())),
        targets_(order_, targets, streams),
        target_scores_(count_, 0.0f),
        block_maximum_(context.threads.count() * count_),
        block_sum_(context.threads.count() * count_),
        parts_(items),
        rest_(parts_.count, count_),
        maximum_(count_, 0.0f),
        inverse_sum_(count_, 0.0f),
        prob_of_rest_(count_, 0.0f),
        grad_scale_(count_, 0.0f) {}

  void visit(const ScoreBlock& block) {
    targets_.visit(block, [&](int64_t state, float& score) {
      target_scores_[state] = score;
      score = -std::numeric_limits<float>::infinity();
    });
    const int64_t first = block.thread * count_ + block.first_state;
    SoftmaxStatistics::of_block(context_.kernels, block, block_maximum_.data() + first, block_sum_.data() + first);
  }

  void merge(int thread, int64_t number) {
    const int64_t first = thread * count_;
    rest_.add(context_.kernels, parts_.of_block(number), block_maximum_.data() + first, block_sum_.data() + first);
  }

  // To be called once, after the last block and before the next three.
  void finish() { rest_.merge(context_.kernels); }

  // The state's cross-entropy; kept for its gradient.
  double loss(int64_t state) {
    const TargetSoftmax softmax = with_target(rest_.maximum(state), rest_.sum(state), target_scores_[state]);
    maximum_[state] = softmax.maximum;
    inverse_sum_[state] = softmax.inverse_sum;
    prob_of_rest_[state] = softmax.prob_of_rest;
    return softmax.loss;
  }

  // The gradient w.r.t. the state's cross-entropy; 0 where it is not told.
  void set_scale(int64_t state, double scale) { grad_scale_[state] = static_cast<float>(scale); }

  void to_gradient(const ScoreBlock& block) const {
    context_.kernels.softmax_gradient(block, maximum_.data() + block.first_state,
                                      inverse_sum_.data() + block.first_state, grad_scale_.data() + block.first_state);
    targets_.visit(block,
                   [&](int64_t state, float& gradient) { gradient = -grad_scale_[state] * prob_of_rest_[state]; });
    clear_padding(order_, block);
  }

 private:
  const Context& context_;
  const Order order_;
  const int64_t count_;
  const Targets targets_;
  Buffer target_scores_, block_maximum_, block_sum_;
  const ItemChunks parts_;
  SoftmaxStatistics rest_;
  Buffer maximum_, inverse_sum_, prob_of_rest_, grad_scale_;
};

}  // namespace plr_kernels
