// Mean Kullback-Leibler divergence within groups of states.
//
// With t_i(v) = s_i(v) − max_u s_i(u) and r_i(v) = t_i(v) − mean_j t_j(v), the loss is Σ_i Σ_v p_i(v) r_i(v) /
// (batch (group − 1)), and its gradient by the logits s_i(v) is [p_i (r_i − r̄_i + 1) − mean_j p_j] / (batch (group − 1))
// with r̄_i = Σ_v p_i r_i. Where the reference p_j is detached, the terms "+ p_i − mean_j p_j" are missing.
//
// Near a one-hot distribution, the entry of its item w with t = 0, the "top", is a small difference of numbers that are
// not: p_i near 1, and r_i and r̄_i as large as logits. So the sums leave the top out. They give, without cancellation,
//     1 − p_i(w) = Σ_{v≠w} p_i(v)    and    r̄_i − r_i(w) = Σ_{v≠w} p_i(v) (r_i(v) − r_i(w)),
// and with these the gradient of the one entry per state.
//
// Where items are nearly alike, so are a state's probabilities, and its gradient is a sum of items with weights that are no
// larger than the rounding of probabilities, and add up to 0 but for that. What they do add up to is subtracted again, as the
// weight of an item in the middle, so that the rounding meets only what the items differ by.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

namespace {

States packed(const Run& run, const Matrix& states, int64_t group, const Matrix& items, double temperature) {
  return pack_states(run.kernels, states, grouped_order(states.rows / group, group), kLog2E / temperature,
                     takes_pairs(run, states, items), run.threads);
}

// The part of a block's states that are whole groups; a half panel after the last group holds none.
int64_t whole_groups(int64_t states, int64_t group) { return states / (group * kLanes) * (group * kLanes); }

// Memory for the statistics of some states over parts of the items.
class StatisticsOfParts {
 public:
  StatisticsOfParts(int64_t parts, int64_t states) : states_(states), numbers_(5 * parts * states, 0.0f) {}
  // From a state on.
  DivergenceStatistics of(int64_t part, int64_t state) {
    float* start = numbers_.data() + 5 * part * states_ + state;
    return {start, start + states_, start + 2 * states_, start + 3 * states_, start + 4 * states_};
  }

 private:
  int64_t states_;
  Buffer numbers_;
};

// What the backward pass needs of every packed state.
struct Distributions {
  explicit Distributions(int64_t states)
      : maximum(states, 0.0f), inverse_sum(states, 0.0f), mean_deviation(states, 0.0f), others(states, 0.0f),
        top_deviation(states, 0.0f) {}
  Buffer maximum;
  Buffer inverse_sum;
  Buffer mean_deviation;  // r̄
  Buffer others;          // 1 − p of the top
  Buffer top_deviation;   // r̄ − r of the top
};

// The gradient by the score of a state's top; `block` holds the scores.
float top_gradient(const ScoreBlock& block, const Distributions& distributions, const std::vector<int64_t>& tops,
                   int64_t state, int64_t group, bool detach_reference) {
  const int64_t top = tops[state];
  double gradient = -kLn2 * distributions.inverse_sum[state] * distributions.top_deviation[state];
  if (detach_reference) return static_cast<float>(gradient);
  const int64_t first = state / (group * kLanes) * (group * kLanes) + state % kLanes;
  const double others = distributions.others[state];
  double difference = 0.0;  // Σ_j (p_i − p_j)
  for (int64_t member = first; member < first + group * kLanes; member += kLanes) {
    if (tops[member] == top) {
      difference += distributions.others[member] - others;
    } else {
      const double distance = static_cast<double>(block.at(top, member)) - distributions.maximum[member];
      difference += (1.0 - others) - std::exp2(distance) * distributions.inverse_sum[member];
    }
  }
  return static_cast<float>(gradient + difference / static_cast<double>(group));
}

// What sums over all items should be 0, of every state, in integer units: the same in whatever order threads add them.
class SumsOverItems {
 public:
  SumsOverItems(int threads, int64_t states) : states_(states), units_(threads * states, 0), known_(units_.size(), 1) {}

  void add(int thread, int64_t state, double value) {
    const int64_t place = thread * states_ + state;
    if (std::abs(value) < kLargest) {
      units_[place] += static_cast<uint64_t>(std::llround(value * kUnitsOfOne));  // their sum is small: it may wrap
    } else {
      known_[place] = 0;
    }
  }

  // 0 where it is not known: where an addend was no number, or beyond all but absurd logits.
  double of(int64_t state) const {
    uint64_t sum = 0;
    for (std::size_t place = state; place < units_.size(); place += states_) {
      if (!known_[place]) return 0.0;
      sum += units_[place];
    }
    return static_cast<double>(static_cast<int64_t>(sum)) / kUnitsOfOne;
  }

 private:
  static constexpr double kUnitsOfOne = 1LL << 50, kLargest = 1 << 12;
  int64_t states_;
  std::vector<uint64_t> units_;
  std::vector<char> known_;
};

// A float32 item amidst the others: the mean of some.
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

// Takes what the gradients by a state's scores add up to, and should not, off the gradient by the state; all float32.
void subtract_sums(const States& states, const SumsOverItems& sums, const Matrix& items, double scale,
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

double pairwise_kl_forward(const Run& run, const Matrix& matrix, int64_t group, const Matrix& items,
                           double temperature, float* statistics, int64_t* tops) {
  const States states = packed(run, matrix, group, items, temperature);
  const ItemChunks chunks(items.rows);
  const int64_t block_states = visited_states(group * kLanes);
  StatisticsOfParts of_chunks(chunks.count, states.count), of_block(run.threads.count(), block_states);
  std::vector<int64_t> top_items(chunks.count * states.count);
  const int64_t memory_size = 2 * chunks.block * kLanes;
  Buffer memory(memory_size * run.threads.count());
  visit_scores(run.kernels, states, items, group * kLanes, run.threads, [&](int64_t chunk, const ScoreBlock& block) {
    const int64_t count = whole_groups(block.states, group);
    const bool first = block.first_item == chunk * chunks.size;
    const DivergenceStatistics so_far = of_chunks.of(chunk, block.first_state);
    const DivergenceStatistics now = first ? so_far : of_block.of(block.thread, 0);
    run.kernels.divergence_statistics(block.scores, block.scores_rows, block.items, count, group,
                                      memory.data() + block.thread * memory_size, now);
    int64_t* top = top_items.data() + chunk * states.count + block.first_state;
    for (int64_t i = 0; i < count; ++i) {
      if (first || now.maximum[i] > so_far.maximum[i]) top[i] = block.first_item + static_cast<int64_t>(now.top[i]);
    }
    if (!first) run.kernels.merge_divergence(count, group, now, so_far);
  });
  const DivergenceStatistics all = of_chunks.of(0, 0);
  const int64_t count = whole_groups(states.count, group);
  for (int64_t chunk = 1; chunk < chunks.count; ++chunk) {
    const DivergenceStatistics further = of_chunks.of(chunk, 0);
    for (int64_t i = 0; i < count; ++i) {
      if (further.maximum[i] > all.maximum[i]) top_items[i] = top_items[chunk * states.count + i];
    }
    run.kernels.merge_divergence(count, group, further, all);
  }
  const int64_t rows = matrix.rows;
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    const double sum = 1.0 + all.rest[i];
    const double top_deviation = all.deviation[i] / sum, mean_deviation = all.at_top[i] + top_deviation;
    const double numbers[] = {all.maximum[i], 1.0 / sum, mean_deviation, all.rest[i] / sum, top_deviation};
    for (int64_t kind = 0; kind < 5; ++kind) statistics[kind * rows + row] = static_cast<float>(numbers[kind]);
    tops[row] = top_items[i];
    total += mean_deviation;
  }
  return total * kLn2 / (static_cast<double>(rows / group) * static_cast<double>(group - 1));
}

void pairwise_kl_backward(const Run& run, const Matrix& matrix, int64_t group, const Matrix& items, double temperature,
                          bool detach_reference, const float* statistics, const int64_t* tops, double weight,
                          const MutableMatrix* states_gradient, const MutableMatrix* items_gradient) {
  const States states = packed(run, matrix, group, items, temperature);
  const int64_t rows = matrix.rows;
  Distributions distributions(states.count);
  std::vector<int64_t> top_items(states.count, -1);
  for (int64_t i = 0; i < states.count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    distributions.maximum[i] = statistics[row];
    distributions.inverse_sum[i] = statistics[rows + row];
    distributions.mean_deviation[i] = statistics[2 * rows + row];
    distributions.others[i] = statistics[3 * rows + row];
    distributions.top_deviation[i] = statistics[4 * rows + row];
    top_items[i] = tops[row];
  }
  const Targets by_item(states.order, tops);
  const int64_t memory_size = 4 * items_per_block(items.rows) * kLanes;
  Buffer memory(memory_size * run.threads.count());
  const int64_t block_states = states_per_block(group * kLanes, kProductDepth);
  Buffer sums_of_block(block_states * run.threads.count());
  SumsOverItems sums(run.threads.count(), states.count);
  const float scale = static_cast<float>(
      weight / temperature / (static_cast<double>(rows / group) * static_cast<double>(group - 1)));
  backward_through_scores(
      run.kernels, states, matrix, items, group * kLanes, {states_gradient, scale, items_gradient, scale}, run.threads,
      [&](const ScoreBlock& block) {
        std::vector<float> top_gradients;  // before the scores are overwritten
        by_item.visit(block, [&](int64_t state, const float&) {
          top_gradients.push_back(top_gradient(block, distributions, top_items, state, group, detach_reference));
        });
        const int64_t count = whole_groups(block.states, group);
        float* block_sums = sums_of_block.data() + block.thread * block_states;
        run.kernels.divergence_gradient(block.scores, block.scores_rows, block.items, count, group, detach_reference,
                                        memory.data() + block.thread * memory_size,
                                        distributions.maximum.data() + block.first_state,
                                        distributions.inverse_sum.data() + block.first_state,
                                        distributions.mean_deviation.data() + block.first_state, block_sums);
        auto next = top_gradients.begin();
        by_item.visit(block, [&](int64_t state, float& gradient) {
          block_sums[state - block.first_state] += *next - gradient;
          gradient = *next++;
        });
        for (int64_t i = 0; i < count; ++i) sums.add(block.thread, block.first_state + i, block_sums[i]);
      });
  if (states_gradient != nullptr && !states.paired && states_gradient->type == DataType::float32) {
    subtract_sums(states, sums, items, scale, *states_gradient);
  }
}

}  // namespace plr_kernels
