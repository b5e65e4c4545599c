// Each state's target item, found by block of scores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "score_blocks.h"
#include "states.h"

namespace plr_kernels {

class Targets {
 public:
  // targets: per `streams` consecutive rows of the matrix of states
  Targets(const Order& order, const int64_t* targets, int64_t streams = 1) {
    for (int64_t state = 0; state < static_cast<int64_t>(order.size()); ++state) {
      if (order[state] >= 0) sorted_.emplace_back(targets[order[state] / streams], state);
    }
    std::sort(sorted_.begin(), sorted_.end());
  }

  // One for each packed state, negative for a state without.
  explicit Targets(const std::vector<int64_t>& targets) {
    for (int64_t state = 0; state < static_cast<int64_t>(targets.size()); ++state) {
      if (targets[state] >= 0) sorted_.emplace_back(targets[state], state);
    }
    std::sort(sorted_.begin(), sorted_.end());
  }

  // Calls visit(state, entry) with the entry of the block that belongs to a state and its target, for all in the block.
  template <class Visit>
  void visit(const ScoreBlock& block, const Visit& visit) const {
    const int64_t end_item = block.first_item + block.items, end_state = block.first_state + block.states;
    const auto first = std::lower_bound(sorted_.begin(), sorted_.end(), std::pair(block.first_item, int64_t{0}));
    for (auto pair = first; pair != sorted_.end() && pair->first < end_item; ++pair) {
      const auto [item, state] = *pair;
      if (state < block.first_state || state >= end_state) continue;
      visit(state, block.at(item, state));
    }
  }

 private:
  std::vector<std::pair<int64_t, int64_t>> sorted_;  // item, state
};

}  // namespace plr_kernels
