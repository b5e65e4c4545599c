// Divergences within groups of states, of the first states of a sweep: their statistics over the items, and the gradient
// w.r.t. the scores. The equations are in pairwise_kl.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"
#include "score_blocks.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

// The number of a block's states that belong to whole groups; a half panel after the last group holds none.
inline int64_t whole_groups(int64_t states, int64_t group) { return states / (group * kLanes) * (group * kLanes); }

// ------------------------------------------------------------------------------------------ statistics

// Memory for the statistics of some states over parts of the items.
class PartialStatistics {
 public:
  PartialStatistics(int64_t parts, int64_t states) : states_(states), numbers_(5 * parts * states, 0.0f) {}
  // From a state on.
  DivergenceStatistics of(int64_t part, int64_t state) {
    float* start = numbers_.data() + 5 * part * states_ + state;
    return {start, start + states_, start + 2 * states_, start + 3 * states_, start + 4 * states_};
  }

 private:
  int64_t states_;
  Buffer numbers_;
};

// The statistics of a chunk of groups (score_chunks.h), of which `visit` sees every block of scores.
class ChunkDivergence {
 public:
  ChunkDivergence(const Context& context, int64_t items, int64_t group, int64_t states)
      : context_(context),
        group_(group),
        count_(states),
        memory_size_(2 * items_per_block(items) * kLanes),
        memory_(memory_size_ * context.threads.count()),
        of_block_(context.threads.count(), states),
        block_argmax_(context.threads.count() * states),
        parts_(items),
        parts_statistics_(parts_.count, states),
        parts_argmax_(parts_.count * states) {}

  void visit(const ScoreBlock& block) {
    Scores scores = block;
    scores.states = whole_groups(block.states, group_);
    const DivergenceStatistics now = of_block_.of(block.thread, block.first_state);
    context_.kernels.divergence_statistics(scores, group_, memory_.data() + block.thread * memory_size_, now);
    int64_t* item = block_argmax_.data() + block.thread * count_ + block.first_state;
    for (int64_t i = 0; i < scores.states; ++i) {
      item[i] = block.first_item + static_cast<int64_t>(now.argmax[i]);
      block.at(item[i], block.first_state + i) = now.maximum[i];  // where the statistics have left none
    }
  }

  // The first block of a part of the items sets its statistics, the others are merged into them, as in the forward pass.
  void merge(int thread, int64_t number) {
    const int64_t part = parts_.of_block(number);
    const DivergenceStatistics now = of_block_.of(thread, 0), so_far = parts_statistics_.of(part, 0);
    const int64_t* item = block_argmax_.data() + thread * count_;
    int64_t* argmax = parts_argmax_.data() + part * count_;
    if (number * parts_.block != part * parts_.size) {
      add(item, now, argmax, so_far);
      return;
    }
    std::copy_n(item, count_, argmax);
    for (const auto member : {&DivergenceStatistics::maximum, &DivergenceStatistics::sum_of_rest,
                              &DivergenceStatistics::argmax_r, &DivergenceStatistics::deviation}) {
      std::copy_n(now.*member, count_, so_far.*member);
    }
  }

  // To be called once, after the last block: makes part 0, which the next two are about, hold all items.
  void finish() {
    for (int64_t part = 1; part < parts_.count; ++part) {
      add(parts_argmax_.data() + part * count_, parts_statistics_.of(part, 0), parts_argmax_.data(), all());
    }
  }
  DivergenceStatistics all() { return parts_statistics_.of(0, 0); }
  const int64_t* argmax() const { return parts_argmax_.data(); }

 private:
  void add(const int64_t* item, const DivergenceStatistics& now, int64_t* argmax,
           const DivergenceStatistics& so_far) const {
    const int64_t count = whole_groups(count_, group_);
    for (int64_t i = 0; i < count; ++i) {
      if (now.maximum[i] > so_far.maximum[i]) argmax[i] = item[i];
    }
    context_.kernels.merge_divergence(count, group_, now, so_far);
  }

  const Context& context_;
  const int64_t group_, count_;
  const int64_t memory_size_;
  Buffer memory_;
  PartialStatistics of_block_;
  std::vector<int64_t> block_argmax_;
  const ItemChunks parts_;
  PartialStatistics parts_statistics_;
  std::vector<int64_t> parts_argmax_;
};

// What the gradient needs of a state, from its statistics over all items.
struct StateDivergence {
  float maximum;           // the largest score m
  float inverse_sum;       // 1 / Σ exp2(s − m)
  double mean_deviation;   // r̄
  float prob_of_rest;      // 1 − p of the argmax
  float argmax_deviation;  // r̄ − r of the argmax

  static StateDivergence of(const DivergenceStatistics& all, int64_t state) {
    const double sum = 1.0 + all.sum_of_rest[state];
    const double argmax_deviation = all.deviation[state] / sum;
    return {all.maximum[state], static_cast<float>(1.0 / sum), all.argmax_r[state] + argmax_deviation,
            static_cast<float>(all.sum_of_rest[state] / sum), static_cast<float>(argmax_deviation)};
  }
};

// The same of every packed state, and its argmax; of those that are no row zeros and -1.
struct Distributions {
  explicit Distributions(int64_t states)
      : maximum(states, 0.0f),
        inverse_sum(states, 0.0f),
        mean_deviation(states, 0.0f),
        prob_of_rest(states, 0.0f),
        argmax_deviation(states, 0.0f),
        added_at_argmax(states, 0.0f),
        argmax(states, -1) {}

  void set(int64_t state, const StateDivergence& divergence, int64_t argmax_of_state) {
    maximum[state] = divergence.maximum;
    inverse_sum[state] = divergence.inverse_sum;
    mean_deviation[state] = static_cast<float>(divergence.mean_deviation);
    prob_of_rest[state] = divergence.prob_of_rest;
    argmax_deviation[state] = divergence.argmax_deviation;
    argmax[state] = argmax_of_state;
  }

  // Adds the gradient of `scale` times the cross-entropy of a target but for −scale at a target that is not the argmax:
  // since p (r − r̄) ln 2 + scale p = p (r − (r̄ − scale / ln 2)) ln 2, the kernel does so with a mean that is shifted.
  void add_cross_entropy(int64_t state, double scale, bool argmax_is_target) {
    mean_deviation[state] = static_cast<float>(mean_deviation[state] - scale / kLn2);
    added_at_argmax[state] = static_cast<float>(argmax_is_target ? -scale * prob_of_rest[state]
                                                                 : scale * inverse_sum[state]);
  }

  Buffer maximum, inverse_sum, mean_deviation, prob_of_rest, argmax_deviation, added_at_argmax;
  std::vector<int64_t> argmax;
};

// ------------------------------------------------------------------------------------------ the gradient

// The gradient of the divergence w.r.t. the score of a state's argmax; `block` holds the scores.
inline float argmax_gradient(const ScoreBlock& block, const Distributions& distributions, int64_t state, int64_t group,
                             bool detach_reference) {
  const int64_t argmax = distributions.argmax[state];
  double gradient = -kLn2 * distributions.inverse_sum[state] * distributions.argmax_deviation[state];
  if (detach_reference) return static_cast<float>(gradient);
  const int64_t first = state / (group * kLanes) * (group * kLanes) + state % kLanes;
  const double prob_of_rest = distributions.prob_of_rest[state];
  double difference = 0.0;  // Σ_j (p_i − p_j)
  for (int64_t member = first; member < first + group * kLanes; member += kLanes) {
    if (distributions.argmax[member] == argmax) {
      difference += distributions.prob_of_rest[member] - prob_of_rest;
    } else {
      const double t = static_cast<double>(block.at(argmax, member)) - distributions.maximum[member];
      difference += (1.0 - prob_of_rest) - std::exp2(t) * distributions.inverse_sum[member];
    }
  }
  return static_cast<float>(gradient + difference / static_cast<double>(group));
}

// Per state, the sum over all items of the gradients w.r.t. its scores, which should be 0. In fixed point: the same in
// whatever order threads add them.
class GradientSums {
 public:
  GradientSums(int threads, int64_t states) : states_(states), sums_(threads * states, 0), known_(sums_.size(), 1) {}

  void add(int thread, int64_t state, double value) {
    const int64_t place = thread * states_ + state;
    if (std::abs(value) < kLargest) {
      sums_[place] += static_cast<uint64_t>(std::llround(value * kOne));  // the total is small: this may wrap
    } else {
      known_[place] = 0;
    }
  }

  // 0 where it is not known: where an addend was not finite, or too large for any but absurd logits.
  double of(int64_t state) const {
    uint64_t sum = 0;
    for (std::size_t place = state; place < sums_.size(); place += states_) {
      if (!known_[place]) return 0.0;
      sum += sums_[place];
    }
    return static_cast<double>(static_cast<int64_t>(sum)) / kOne;
  }

 private:
  static constexpr double kOne = 1LL << 50, kLargest = 1 << 12;
  int64_t states_;
  std::vector<uint64_t> sums_;
  std::vector<char> known_;
};

// An item in the middle of the others: the mean of some; float32.
inline std::vector<double> middle_item(const Matrix& items) {
  constexpr int64_t most = 64;
  const int64_t count = std::min(items.rows, most);
  std::vector<double> mean(items.columns, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    const float* item = static_cast<const float*>(row_of(items, items.rows * i / count));
    for (int64_t d = 0; d < items.columns; ++d) mean[d] += item[d] / static_cast<double>(count);
  }
  return mean;
}

// Replaces blocks of scores by the gradients w.r.t. them, but for what multiplies them all.
class DivergenceGradient {
 public:
  // Of as many states as there are distributions, the first ones of `states`.
  DivergenceGradient(const Context& context, const States& states, const Matrix& items, int64_t group,
                     bool detach_reference, Distributions distributions)
      : context_(context),
        states_(states),
        items_(items),
        group_(group),
        detach_reference_(detach_reference),
        distributions_(std::move(distributions)),
        by_item_(distributions_.argmax),
        memory_size_(4 * items_per_block(items.rows) * kLanes),
        block_states_(states_per_block(group * kLanes, kKC)),
        memory_(memory_size_ * context.threads.count()),
        block_sums_(block_states_ * context.threads.count()),
        sums_(context.threads.count(), static_cast<int64_t>(distributions_.argmax.size())) {}

  void operator()(const ScoreBlock& block) {
    std::vector<float> argmax_gradients;  // before the scores are overwritten
    by_item_.visit(block, [&](int64_t state, const float&) {
      argmax_gradients.push_back(argmax_gradient(block, distributions_, state, group_, detach_reference_) +
                                 distributions_.added_at_argmax[state]);
    });
    Scores scores = block;
    scores.states = whole_groups(block.states, group_);
    float* state_sums = block_sums_.data() + block.thread * block_states_;
    context_.kernels.divergence_gradient(scores, group_, detach_reference_,
                                         memory_.data() + block.thread * memory_size_,
                                         distributions_.maximum.data() + block.first_state,
                                         distributions_.inverse_sum.data() + block.first_state,
                                         distributions_.mean_deviation.data() + block.first_state, state_sums);
    auto next = argmax_gradients.begin();
    by_item_.visit(block, [&](int64_t state, float& gradient) {
      gradient = *next++;
      // Anew: beside what the kernel had here the rest may be next to nothing.
      double sum = 0.0;
      for (int64_t item = block.first_item; item < block.first_item + block.items; ++item) sum += block.at(item, state);
      state_sums[state - block.first_state] = static_cast<float>(sum);
    });
    for (int64_t i = 0; i < scores.states; ++i) sums_.add(block.thread, block.first_state + i, state_sums[i]);
  }

  // Adds to the gradient w.r.t. a score that the block holds now.
  void add(const ScoreBlock& block, int64_t state, float& gradient, float value) {
    gradient += value;
    sums_.add(block.thread, state, value);
  }

  // Subtracts from the gradient w.r.t. each state, which `scale` has multiplied, what the sum over the items, which
  // should be 0, contributes; where all are float32.
  void correct(double scale, const MutableMatrix& gradient) const {
    if (states_.arithmetic == Arithmetic::pairs || items_.type != DataType::float32) return;
    const std::vector<double> middle = middle_item(items_);
    for (std::size_t i = 0; i < distributions_.argmax.size(); ++i) {
      if (states_.order[i] < 0) continue;
      const double factor = sums_.of(static_cast<int64_t>(i)) * scale;
      float* row = static_cast<float*>(row_of(gradient, states_.order[i]));
      for (int64_t d = 0; d < states_.dim; ++d) row[d] -= static_cast<float>(factor * middle[d]);
    }
  }

 private:
  const Context& context_;
  const States& states_;
  const Matrix& items_;
  const int64_t group_;
  const bool detach_reference_;
  const Distributions distributions_;
  const Targets by_item_;
  const int64_t memory_size_, block_states_;
  Buffer memory_, block_sums_;
  GradientSums sums_;
};

}  // namespace plr_kernels
