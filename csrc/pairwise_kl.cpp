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
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "buffer.h"
#include "divergence.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_chunks.h"
#include "score_gradients.h"
#include "states.h"

namespace plr_kernels {

namespace {

// `batch` groups from number `first` on.
States pack_groups(const Context& context, const Matrix& states, int64_t first, int64_t batch, int64_t group,
                   double temperature, Arithmetic arithmetic) {
  Order order = grouped_order(batch, group);
  for (int64_t& row : order) row += row >= 0 ? first * group : 0;
  return pack_states(context, states, std::move(order), kLog2E / temperature, arithmetic);
}

// All of them.
States pack_all(const Context& context, const Matrix& states, int64_t group, const Matrix& items, double temperature) {
  return pack_groups(context, states, 0, states.rows / group, group, temperature,
                     choose_arithmetic(context, states, items, kLog2E / temperature));
}

// What the backward pass needs of every state: the columns of its statistics [5, rows], as in StateDivergence.
template <class Number>
struct DivergenceColumns {
  Number *maximum, *inverse_sum, *mean_deviation, *prob_of_rest, *argmax_deviation;

  static DivergenceColumns of(Number* statistics, int64_t rows) {
    return {statistics, statistics + rows, statistics + 2 * rows, statistics + 3 * rows, statistics + 4 * rows};
  }
};

// From the statistics over all items and the argmax of every packed state to those of every row. Returns the sum of
// all r̄.
double store_statistics(const States& states, const DivergenceStatistics& all, const int64_t* argmax_of_state,
                        int64_t group, const DivergenceColumns<float>& columns, int64_t* argmax) {
  double total = 0.0;
  for (int64_t i = 0; i < whole_groups(states.count, group); ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    const StateDivergence divergence = StateDivergence::of(all, i);
    columns.maximum[row] = divergence.maximum;
    columns.inverse_sum[row] = divergence.inverse_sum;
    columns.mean_deviation[row] = static_cast<float>(divergence.mean_deviation);
    columns.prob_of_rest[row] = divergence.prob_of_rest;
    columns.argmax_deviation[row] = divergence.argmax_deviation;
    argmax[row] = argmax_of_state[i];
    total += divergence.mean_deviation;
  }
  return total;
}

// The way back.
Distributions packed_statistics(const States& states, const DivergenceColumns<const float>& columns,
                                const int64_t* argmax) {
  Distributions distributions(states.count);
  for (int64_t i = 0; i < states.count; ++i) {
    const int64_t row = states.order[i];
    if (row < 0) continue;
    distributions.set(i,
                      {columns.maximum[row], columns.inverse_sum[row], columns.mean_deviation[row],
                       columns.prob_of_rest[row], columns.argmax_deviation[row]},
                      argmax[row]);
  }
  return distributions;
}

// 1 / (batch (group − 1)): what a state's r̄ counts in the loss.
double share_of_pair(int64_t rows, int64_t group) {
  return 1.0 / (static_cast<double>(rows / group) * static_cast<double>(group - 1));
}

// What a pass that makes loss and gradients has for all its chunks (score_chunks.h).
struct DivergencePass {
  const Context& context;
  const Matrix& states;
  const Matrix& items;
  int64_t group;
  double temperature;
  bool detach_reference;
  float scale;         // of the gradients
  Arithmetic arithmetic;
  double total = 0.0;  // of all r̄
};

// A chunk of groups.
class DivergenceChunk {
 public:
  const States states;

  DivergenceChunk(DivergencePass& pass, int64_t first, int64_t entries)
      : states(pack_groups(pass.context, pass.states, first, entries, pass.group, pass.temperature,
                           pass.arithmetic)),
        pass_(pass),
        statistics_(pass.context, pass.items.rows, pass.group, states.count) {}

  void visit(const ScoreBlock& block) { statistics_.visit(block); }

  void merge(int thread, int64_t number) { statistics_.merge(thread, number); }

  void finish() {
    statistics_.finish();
    Distributions distributions(states.count);
    for (int64_t i = 0; i < whole_groups(states.count, pass_.group); ++i) {
      if (states.order[i] < 0) continue;
      const StateDivergence divergence = StateDivergence::of(statistics_.all(), i);
      distributions.set(i, divergence, statistics_.argmax()[i]);
      pass_.total += divergence.mean_deviation;
    }
    gradient_ = std::make_unique<DivergenceGradient>(pass_.context, states, pass_.items, pass_.group,
                                                     pass_.detach_reference, std::move(distributions));
  }

  void to_gradient(const ScoreBlock& block) { (*gradient_)(block); }

  void stored(const MutableMatrix& gradient) const { gradient_->correct(pass_.scale, gradient); }

 private:
  DivergencePass& pass_;
  ChunkDivergence statistics_;
  std::unique_ptr<DivergenceGradient> gradient_;  // after finish()
};

}  // namespace

double pairwise_kl_forward(const Context& context, const Matrix& matrix, int64_t group, const Matrix& items,
                           double temperature, float* statistics, int64_t* argmax) {
  const Kernels& kernels = context.kernels;
  const States states = pack_all(context, matrix, group, items, temperature);
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

  const double total = store_statistics(states, all, chunk_argmax.data(), group,
                                        DivergenceColumns<float>::of(statistics, matrix.rows), argmax);
  return total * kLn2 * share_of_pair(matrix.rows, group);
}

void pairwise_kl_backward(const Context& context, const Matrix& matrix, int64_t group, const Matrix& items,
                          double temperature, bool detach_reference, const float* statistics, const int64_t* argmax,
                          double loss_gradient, const MutableMatrix* states_gradient,
                          const MutableMatrix* items_gradient) {
  const States states = pack_all(context, matrix, group, items, temperature);
  DivergenceGradient to_gradient(
      context, states, items, group, detach_reference,
      packed_statistics(states, DivergenceColumns<const float>::of(statistics, matrix.rows), argmax));
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
  DivergencePass pass{context, states, items, group, temperature, detach_reference, scale,
                      choose_arithmetic(context, states, items, kLog2E / temperature)};
  // Chunks of nearly equal size, and of whole Vectors of groups.
  const int64_t most = std::max<int64_t>(1, chunk_states / (group * kLanes)) * kLanes;
  const int64_t each = round_up(divided_up(entries, divided_up(entries, most)), kLanes);
  const int64_t largest = round_up(each * group, kPanelColumns);
  sweep_chunks({context, states, items, group * kLanes, pass.arithmetic, {states_gradient, items_gradient, scale}},
               divided_up(entries, each), largest, [&](int64_t number) {
                 const int64_t first = number * each;
                 return std::make_unique<DivergenceChunk>(pass, first, std::min(each, entries - first));
               });
  return pass.total * kLn2 * share;
}

}  // namespace plr_kernels
