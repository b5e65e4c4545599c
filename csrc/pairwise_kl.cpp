// Mean Kullback-Leibler divergence within groups of states.
//
// With t_i(v) = s_i(v) − max_u s_i(u) and the deviation r_i(v) = t_i(v) − mean_j t_j(v), the loss is Σ_i Σ_v p_i(v)
// r_i(v) / (batch (group − 1)), and its gradient w.r.t. the logits s_i(v) is [p_i (r_i − r̄_i + 1) − mean_j p_j] /
// (batch (group − 1)) with r̄_i = Σ_v p_i r_i. Where the reference p_j is detached, the terms "+ p_i − mean_j p_j" are
// missing.
//
// Near a one-hot distribution, the gradient at the argmax w, where t = 0, is a small difference of numbers that are not
// small: p_i near 1, and r_i and r̄_i as large as logits. So the sums leave the argmax out. They give, without
// cancellation,
//     1 − p_i(w) = Σ_{v≠w} p_i(v)    and    r̄_i − r_i(w) = Σ_{v≠w} p_i(v) (r_i(v) − r_i(w)),
// and with these the gradient of the one entry per state.
//
// Where items are nearly alike, so are a state's probabilities, and its gradient is a sum of items with weights that
// are no larger than the rounding of probabilities, and add up to 0 but for that. What they do add up to is subtracted
// again, as the weight of an item in the middle, so that the rounding meets only what the items differ by.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_gradients.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

namespace {

States pack_groups(const Context& context, const Matrix& states, int64_t group, const Matrix& items,
                   double temperature) {
  return pack_states(context, states, grouped_order(states.rows / group, group), kLog2E / temperature,
                     takes_pairs(context, states, items));
}

// The number of a block's states that belong to whole groups; a half panel after the last group holds none.
int64_t whole_groups(int64_t states, int64_t group) { return states / (group * kLanes) * (group * kLanes); }

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

// What the backward pass needs of every state: the columns of its statistics [5, rows].
template <class Number>
struct DivergenceColumns {
  Number* maximum;           // the largest score m
  Number* inverse_sum;       // 1 / Σ exp2(s − m)
  Number* mean_deviation;    // r̄
  Number* prob_of_rest;      // 1 − p of the argmax
  Number* argmax_deviation;  // r̄ − r of the argmax

  static DivergenceColumns of(Number* statistics, int64_t rows) {
    return {statistics, statistics + rows, statistics + 2 * rows, statistics + 3 * rows, statistics + 4 * rows};
  }
};

// The same of every packed state, and its argmax.
struct Distributions {
  Distributions(const States& states, const DivergenceColumns<const float>& columns, const int64_t* argmax_of_row)
      : maximum(packed_column(states, columns.maximum)),
        inverse_sum(packed_column(states, columns.inverse_sum)),
        mean_deviation(packed_column(states, columns.mean_deviation)),
        prob_of_rest(packed_column(states, columns.prob_of_rest)),
        argmax_deviation(packed_column(states, columns.argmax_deviation)),
        argmax(states.count, -1) {
    for (int64_t i = 0; i < states.count; ++i) {
      if (states.order[i] >= 0) argmax[i] = argmax_of_row[states.order[i]];
    }
  }
  Buffer maximum, inverse_sum, mean_deviation, prob_of_rest, argmax_deviation;
  std::vector<int64_t> argmax;
};

// The gradient w.r.t. the score of a state's argmax; `block` holds the scores.
float argmax_gradient(const ScoreBlock& block, const Distributions& distributions, int64_t state, int64_t group,
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
std::vector<double> middle_item(const Matrix& items) {
  constexpr int64_t most = 64;
  const int64_t count = std::min(items.rows, most);
  std::vector<double> mean(items.columns, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    const float* item = static_cast<const float*>(row_of(items, items.rows * i / count));
    for (int64_t d = 0; d < items.columns; ++d) mean[d] += item[d] / static_cast<double>(count);
  }
  return mean;
}

// Subtracts from the gradient w.r.t. each state what its sum, which should be 0, contributes; all float32.
void subtract_sums(const States& states, const GradientSums& sums, const Matrix& items, double scale,
                   const MutableMatrix& gradient) {
  const std::vector<double> middle = middle_item(items);
  for (int64_t i = 0; i < states.count; ++i) {
    if (states.order[i] < 0) continue;
    const double factor = sums.of(i) * scale;
    float* row = static_cast<float*>(row_of(gradient, states.order[i]));
    for (int64_t d = 0; d < states.dim; ++d) row[d] -= static_cast<float>(factor * middle[d]);
  }
}

}  // namespace

double pairwise_kl_forward(const Context& context, const Matrix& matrix, int64_t group, const Matrix& items,
                           double temperature, float* statistics, int64_t* argmax) {
  const Kernels& kernels = context.kernels;
  const States states = pack_groups(context, matrix, group, items, temperature);
  const ItemChunks chunks(items.rows);
  const int64_t block_states = visited_states(group * kLanes);
  PartialStatistics chunk_statistics(chunks.count, states.count);
  PartialStatistics block_statistics(context.threads.count(), block_states);
  std::vector<int64_t> chunk_argmax(chunks.count * states.count);
  const int64_t memory_size = 2 * chunks.block * kLanes;
  Buffer memory(memory_size * context.threads.count());
  visit_scores(context, states, items, group * kLanes, [&](int64_t chunk, const ScoreBlock& block) {
    Scores scores = block;
    scores.states = whole_groups(block.states, group);
    // The first block of a chunk sets its statistics, the others are merged into them.
    const bool first = block.first_item == chunk * chunks.size;
    const DivergenceStatistics so_far = chunk_statistics.of(chunk, block.first_state);
    const DivergenceStatistics now = first ? so_far : block_statistics.of(block.thread, 0);
    kernels.divergence_statistics(scores, group, memory.data() + block.thread * memory_size, now);
    int64_t* item = chunk_argmax.data() + chunk * states.count + block.first_state;
    for (int64_t i = 0; i < scores.states; ++i) {
      if (first || now.maximum[i] > so_far.maximum[i]) item[i] = block.first_item + static_cast<int64_t>(now.argmax[i]);
    }
    if (!first) kernels.merge_divergence(scores.states, group, now, so_far);
  });

  // Chunk 0 becomes the statistics over all items.
  const DivergenceStatistics all = chunk_statistics.of(0, 0);
  const int64_t count = whole_groups(states.count, group);
  for (int64_t chunk = 1; chunk < chunks.count; ++chunk) {
    const DivergenceStatistics further = chunk_statistics.of(chunk, 0);
    for (int64_t i = 0; i < count; ++i) {
      if (further.maximum[i] > all.maximum[i]) chunk_argmax[i] = chunk_argmax[chunk * states.count + i];
    }
    kernels.merge_divergence(count, group, further, all);
  }

  const auto columns = DivergenceColumns<float>::of(statistics, matrix.rows);
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    const double sum = 1.0 + all.sum_of_rest[i];
    const double argmax_deviation = all.deviation[i] / sum;
    const double mean_deviation = all.argmax_r[i] + argmax_deviation;
    columns.maximum[row] = all.maximum[i];
    columns.inverse_sum[row] = static_cast<float>(1.0 / sum);
    columns.mean_deviation[row] = static_cast<float>(mean_deviation);
    columns.prob_of_rest[row] = static_cast<float>(all.sum_of_rest[i] / sum);
    columns.argmax_deviation[row] = static_cast<float>(argmax_deviation);
    argmax[row] = chunk_argmax[i];
    total += mean_deviation;
  }
  return total * kLn2 / (static_cast<double>(matrix.rows / group) * static_cast<double>(group - 1));
}

void pairwise_kl_backward(const Context& context, const Matrix& matrix, int64_t group, const Matrix& items,
                          double temperature, bool detach_reference, const float* statistics, const int64_t* argmax,
                          double loss_gradient, const MutableMatrix* states_gradient,
                          const MutableMatrix* items_gradient) {
  const States states = pack_groups(context, matrix, group, items, temperature);
  const int64_t rows = matrix.rows;
  const Distributions distributions(states, DivergenceColumns<const float>::of(statistics, rows), argmax);
  const Targets by_item(states.order, argmax);
  const int64_t memory_size = 4 * items_per_block(items.rows) * kLanes;
  Buffer memory(memory_size * context.threads.count());
  const int64_t block_states = states_per_block(group * kLanes, kKC);
  Buffer block_sums(block_states * context.threads.count());
  GradientSums sums(context.threads.count(), states.count);
  const float scale = static_cast<float>(loss_gradient / temperature /
                                         (static_cast<double>(rows / group) * static_cast<double>(group - 1)));
  backward_through_scores(
      context, states, matrix, items, group * kLanes, {states_gradient, items_gradient, scale},
      [&](const ScoreBlock& block) {
        std::vector<float> argmax_gradients;  // before the scores are overwritten
        by_item.visit(block, [&](int64_t state, const float&) {
          argmax_gradients.push_back(argmax_gradient(block, distributions, state, group, detach_reference));
        });
        Scores scores = block;
        scores.states = whole_groups(block.states, group);
        float* state_sums = block_sums.data() + block.thread * block_states;
        context.kernels.divergence_gradient(scores, group, detach_reference, memory.data() + block.thread * memory_size,
                                            distributions.maximum.data() + block.first_state,
                                            distributions.inverse_sum.data() + block.first_state,
                                            distributions.mean_deviation.data() + block.first_state, state_sums);
        auto next = argmax_gradients.begin();
        by_item.visit(block, [&](int64_t state, float& gradient) {
          state_sums[state - block.first_state] += *next - gradient;
          gradient = *next++;
        });
        for (int64_t i = 0; i < scores.states; ++i) sums.add(block.thread, block.first_state + i, state_sums[i]);
      });
  if (states_gradient != nullptr && !states.paired && states_gradient->type == DataType::float32) {
    subtract_sums(states, sums, items, scale, *states_gradient);
  }
}

}  // namespace plr_kernels
