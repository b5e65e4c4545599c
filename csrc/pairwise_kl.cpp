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
#include <memory>
#include <utility>
#include <vector>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_chunks.h"
#include "score_gradients.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

namespace {

// `batch` groups from number `first` on.
States pack_groups(const Context& context, const Matrix& states, int64_t first, int64_t batch, int64_t group,
                   const Matrix& items, double temperature) {
  Order order = grouped_order(batch, group);
  for (int64_t& row : order) row += row >= 0 ? first * group : 0;
  return pack_states(context, states, std::move(order), kLog2E / temperature, takes_pairs(context, states, items));
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

// From the statistics over all items and the argmax of every packed state to those of every row. Adds all r̄
// to `total`.
void store_statistics(const States& states, const DivergenceStatistics& all, const int64_t* argmax_of_state,
                      int64_t group, const DivergenceColumns<float>& columns, int64_t* argmax, double& total) {
  for (int64_t i = 0; i < whole_groups(states.count, group); ++i) {
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
    argmax[row] = argmax_of_state[i];
    total += mean_deviation;
  }
}

// 1 / (batch (group − 1)): what a state's r̄ counts in the loss.
double share_of_pair(int64_t rows, int64_t group) {
  return 1.0 / (static_cast<double>(rows / group) * static_cast<double>(group - 1));
}

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

// Replaces blocks of scores by the gradients w.r.t. them, but for what multiplies them all.
class DivergenceGradient {
 public:
  DivergenceGradient(const Context& context, const States& states, const Matrix& items, int64_t group,
                     bool detach_reference, const DivergenceColumns<const float>& columns, const int64_t* argmax)
      : context_(context),
        states_(states),
        items_(items),
        group_(group),
        detach_reference_(detach_reference),
        distributions_(states, columns, argmax),
        by_item_(states.order, argmax),
        memory_size_(4 * items_per_block(items.rows) * kLanes),
        block_states_(states_per_block(group * kLanes, kKC)),
        memory_(memory_size_ * context.threads.count()),
        block_sums_(block_states_ * context.threads.count()),
        sums_(context.threads.count(), states.count) {}

  void operator()(const ScoreBlock& block) {
    std::vector<float> argmax_gradients;  // before the scores are overwritten
    by_item_.visit(block, [&](int64_t state, const float&) {
      argmax_gradients.push_back(argmax_gradient(block, distributions_, state, group_, detach_reference_));
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
      state_sums[state - block.first_state] += *next - gradient;
      gradient = *next++;
    });
    for (int64_t i = 0; i < scores.states; ++i) sums_.add(block.thread, block.first_state + i, state_sums[i]);
  }

  // To be called with the gradient w.r.t. the states, which `scale` has multiplied.
  void correct(double scale, const MutableMatrix& gradient) const {
    if (!states_.paired && items_.type == DataType::float32) subtract_sums(states_, sums_, items_, scale, gradient);
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

// What a pass that makes loss and gradients has for all its chunks (score_chunks.h).
struct DivergencePass {
  const Context& context;
  const Matrix& states;
  const Matrix& items;
  int64_t group;
  double temperature;
  bool detach_reference;
  float scale;          // of the gradients
  Buffer statistics;    // [5, rows]
  std::vector<int64_t> argmax;
  double total = 0.0;   // of all r̄
};

// A chunk of groups.
class DivergenceChunk {
 public:
  const States states;

  DivergenceChunk(DivergencePass& pass, int64_t first, int64_t entries, int64_t batch)
      : states(pack_groups(pass.context, pass.states, first, entries, pass.group, pass.items, pass.temperature)),
        pass_(pass),
        memory_size_(2 * items_per_block(pass.items.rows) * kLanes),
        memory_(memory_size_ * pass.context.threads.count()),
        of_block_(batch, states.count),
        block_argmax_(batch * states.count),
        parts_(pass.items.rows),
        parts_statistics_(parts_.count, states.count),
        parts_argmax_(parts_.count * states.count) {}

  void visit(int64_t index, const ScoreBlock& block) {
    Scores scores = block;
    scores.states = whole_groups(block.states, pass_.group);
    const DivergenceStatistics now = of_block_.of(index, block.first_state);
    pass_.context.kernels.divergence_statistics(scores, pass_.group, memory_.data() + block.thread * memory_size_, now);
    int64_t* item = block_argmax_.data() + index * states.count + block.first_state;
    for (int64_t i = 0; i < scores.states; ++i) {
      item[i] = block.first_item + static_cast<int64_t>(now.argmax[i]);
      block.at(item[i], block.first_state + i) = now.maximum[i];  // where the statistics have left none
    }
  }

  // The first block of a part of the items sets its statistics, the others are merged into them, as in the forward pass.
  void merge(int64_t index, int64_t number) {
    const int64_t part = parts_.of_block(number), count = states.count;
    const DivergenceStatistics now = of_block_.of(index, 0), so_far = parts_statistics_.of(part, 0);
    const int64_t* item = block_argmax_.data() + index * count;
    int64_t* argmax = parts_argmax_.data() + part * count;
    if (number * parts_.block != part * parts_.size) {
      add(item, now, argmax, so_far);
      return;
    }
    std::copy_n(item, count, argmax);
    for (const auto member : {&DivergenceStatistics::maximum, &DivergenceStatistics::sum_of_rest,
                              &DivergenceStatistics::argmax_r, &DivergenceStatistics::deviation}) {
      std::copy_n(now.*member, count, so_far.*member);
    }
  }

  void finish() {
    const auto columns = DivergenceColumns<float>::of(pass_.statistics.data(), pass_.states.rows);
    const DivergenceStatistics all = parts_statistics_.of(0, 0);
    for (int64_t part = 1; part < parts_.count; ++part) {
      add(parts_argmax_.data() + part * states.count, parts_statistics_.of(part, 0), parts_argmax_.data(), all);
    }
    store_statistics(states, all, parts_argmax_.data(), pass_.group, columns, pass_.argmax.data(), pass_.total);
    const auto known = DivergenceColumns<const float>::of(pass_.statistics.data(), pass_.states.rows);
    gradient_ = std::make_unique<DivergenceGradient>(pass_.context, states, pass_.items, pass_.group,
                                                     pass_.detach_reference, known, pass_.argmax.data());
  }

  void to_gradient(const ScoreBlock& block) { (*gradient_)(block); }

  void stored(const MutableMatrix& gradient) const { gradient_->correct(pass_.scale, gradient); }

 private:
  void add(const int64_t* item, const DivergenceStatistics& now, int64_t* argmax,
           const DivergenceStatistics& so_far) const {
    const int64_t count = whole_groups(states.count, pass_.group);
    for (int64_t i = 0; i < count; ++i) {
      if (now.maximum[i] > so_far.maximum[i]) argmax[i] = item[i];
    }
    pass_.context.kernels.merge_divergence(count, pass_.group, now, so_far);
  }

  DivergencePass& pass_;
  const int64_t memory_size_;
  Buffer memory_;
  PartialStatistics of_block_;
  std::vector<int64_t> block_argmax_;
  const ItemChunks parts_;
  PartialStatistics parts_statistics_;
  std::vector<int64_t> parts_argmax_;
  std::unique_ptr<DivergenceGradient> gradient_;  // after finish()
};

}  // namespace

double pairwise_kl_forward(const Context& context, const Matrix& matrix, int64_t group, const Matrix& items,
                           double temperature, float* statistics, int64_t* argmax) {
  const Kernels& kernels = context.kernels;
  const States states = pack_groups(context, matrix, 0, matrix.rows / group, group, items, temperature);
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

  double total = 0.0;
  store_statistics(states, all, chunk_argmax.data(), group, DivergenceColumns<float>::of(statistics, matrix.rows),
                   argmax, total);
  return total * kLn2 * share_of_pair(matrix.rows, group);
}

void pairwise_kl_backward(const Context& context, const Matrix& matrix, int64_t group, const Matrix& items,
                          double temperature, bool detach_reference, const float* statistics, const int64_t* argmax,
                          double loss_gradient, const MutableMatrix* states_gradient,
                          const MutableMatrix* items_gradient) {
  const States states = pack_groups(context, matrix, 0, matrix.rows / group, group, items, temperature);
  DivergenceGradient to_gradient(context, states, items, group, detach_reference,
                                 DivergenceColumns<const float>::of(statistics, matrix.rows), argmax);
  const float scale = static_cast<float>(loss_gradient / temperature * share_of_pair(matrix.rows, group));
  backward_through_scores(context, states, matrix, items, group * kLanes, {states_gradient, items_gradient, scale},
                          [&](const ScoreBlock& block) { to_gradient(block); });
  if (states_gradient != nullptr && states_gradient->type == DataType::float32) {
    to_gradient.correct(scale, *states_gradient);
  }
}

double pairwise_kl_gradients(const Context& context, const Matrix& states, int64_t group, const Matrix& items,
                             double temperature, bool detach_reference, int64_t chunk_states,
                             const MutableMatrix* states_gradient, const MutableMatrix* items_gradient) {
  const int64_t rows = states.rows, entries = rows / group;
  const double share = share_of_pair(rows, group);
  const float scale = static_cast<float>(share / temperature);
  DivergencePass pass{context,          states, items, group, temperature, detach_reference, scale,
                      Buffer(5 * rows), std::vector<int64_t>(rows)};
  // Chunks of nearly equal size, and of whole Vectors of groups.
  const int64_t most = std::max<int64_t>(1, chunk_states / (group * kLanes)) * kLanes;
  const int64_t each = round_up(divided_up(entries, divided_up(entries, most)), kLanes);
  const int64_t largest = round_up(each * group, kPanelColumns);
  sweep_chunks({context, states, items, group * kLanes, {states_gradient, items_gradient, scale}},
               divided_up(entries, each), largest, [&](int64_t number, int64_t batch) {
                 const int64_t first = number * each;
                 return std::make_unique<DivergenceChunk>(pass, first, std::min(each, entries - first), batch);
               });
  return pass.total * kLn2 * share;
}

}  // namespace plr_kernels
