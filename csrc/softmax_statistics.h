// Running log-sum-exp of every state over the items: the largest score m and Σ exp2(s − m).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "buffer.h"
#include "kernels.h"
#include "score_blocks.h"

namespace plr_kernels {

// Kept per chunk of items, and merged in the order of the chunks.
class SoftmaxStatistics {
 public:
  SoftmaxStatistics(int64_t chunks, int64_t states)
      : chunks_(chunks),
        states_(states),
        // Finite, so that scores of -inf alone add nothing to the sum: their distance from it is a number.
        maximum_(chunks * states, std::numeric_limits<float>::lowest()),
        sum_(chunks * states, 0.0f) {}

  // Adds a block of scores of a chunk's items.
  void update(const Kernels& kernels, int64_t chunk, const ScoreBlock& block) {
    const int64_t first = chunk * states_ + block.first_state;
    Buffer now(2 * block.states);
    of_block(kernels, block, now.data(), now.data() + block.states);
    kernels.merge_softmax(block.states, now.data(), now.data() + block.states, maximum_.data() + first,
                          sum_.data() + first);
  }

  // Largest score and sum of a block alone, [block.states] each.
  static void of_block(const Kernels& kernels, const Scores& block, float* maximum, float* sum) {
    std::fill_n(maximum, block.states, std::numeric_limits<float>::lowest());
    std::fill_n(sum, block.states, 0.0f);
    kernels.update_softmax(block, maximum, sum);
  }

  // Adds what of_block found for the blocks of all states.
  void add(const Kernels& kernels, int64_t chunk, const float* maximum, const float* sum) {
    kernels.merge_softmax(states_, maximum, sum, maximum_.data() + chunk * states_, sum_.data() + chunk * states_);
  }

  // To be called once, after the last update: makes chunk 0 hold the statistics of all items.
  void merge(const Kernels& kernels) {
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const int64_t first = chunk * states_;
      kernels.merge_softmax(states_, maximum_.data() + first, sum_.data() + first, maximum_.data(), sum_.data());
    }
  }

  // Of a state over all items; after merge().
  float maximum(int64_t state) const { return maximum_[state]; }
  float sum(int64_t state) const { return sum_[state]; }

 private:
  int64_t chunks_;
  int64_t states_;
  Buffer maximum_;
  Buffer sum_;
};

}  // namespace plr_kernels
