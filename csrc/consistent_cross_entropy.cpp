// Cross-entropy of a mixture in two views of every history, and the divergence of one stream of each between its views,
// from scores that are made once.
//
// A chunk's states are the drawn ones, which lie as those of pairwise_kl with groups of two, and then the others, which
// lie as those of a cross-entropy. Of a drawn state the divergence's statistics, which leave its argmax w out, are enough
// for its cross-entropy: with R = Σ_{v≠w} exp(s(v) − s(w)), that of target y is s(w) − s(y) + log(1 + R). Nothing cancels:
// where y is w, the loss is log(1 + R) and the gradient at y is −R / (1 + R); where it is not, p(y) is at most 1/2.
//
// The gradient w.r.t. a drawn state's score is that of both losses, relative to what scales the divergence's:
//     p (r − r̄ + 1) − mean_j p_j + a (p − [item = target]),
// a being the state's responsibility times the weights' quotient (Distributions::add_cross_entropy).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "buffer.h"
#include "chunk_softmax.h"
#include "divergence.h"
#include "mixture_loss.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_chunks.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

namespace {

constexpr int64_t kViews = 2;

// What a pass has for all its chunks.
struct ConsistentPass {
  const Context& context;
  const Matrix& states;
  const Matrix& items;
  const ConsistentRows& rows;
  double temperature;
  double row_weight;        // of a view of a history in the mean cross-entropy
  double quotient;          // row_weight by what a pair's divergence counts in the loss: that is in `scale`
  float scale;              // of the gradients
  float* losses;            // of every state
  float* weights_gradient;  // null where not wanted
  Arithmetic arithmetic;
  double total = 0.0;       // of all r̄

  int64_t row(int64_t history, int64_t view, int64_t stream) const {
    return (history * kViews + view) * rows.streams + stream;
  }
  bool counts(int64_t history) const { return rows.targets[history] != rows.ignore_index; }
};

// The states of `count` histories from number `first` on: of each the drawn stream in both views; then the streams that
// are not drawn of those that count, view by view.
Order drawn_states(const ConsistentPass& pass, int64_t first, int64_t count) {
  Order order = grouped_order(count, kViews);
  for (int64_t& place : order) {
    if (place < 0) continue;
    const int64_t history = first + place / kViews;
    place = pass.row(history, place % kViews, pass.rows.drawn[history]);
  }
  return order;
}

Order other_states(const ConsistentPass& pass, int64_t first, int64_t count) {
  Order order;
  for (int64_t history = first; history < first + count; ++history) {
    if (!pass.counts(history)) continue;
    for (int64_t view = 0; view < kViews; ++view) {
      for (int64_t m = 0; m < pass.rows.streams; ++m) {
        if (m != pass.rows.drawn[history]) order.push_back(pass.row(history, view, m));
      }
    }
  }
  return listed_order(std::move(order));
}

Order joined(Order first, const Order& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// Where the drawn state of a chunk's history number i lies.
int64_t drawn_place(int64_t i, int64_t view) { return (i / kLanes * kViews + view) * kLanes + i % kLanes; }

// Of a block, the states in [first, end), multiples of 32, numbered from `first` on; none where it has none of them.
ScoreBlock part_of(const ScoreBlock& block, int64_t first, int64_t end) {
  const int64_t start = std::max(first, block.first_state);
  const int64_t states = std::max<int64_t>(0, std::min(end, block.first_state + block.states) - start);
  ScoreBlock part = block;
  part.states = states;
  part.data += states > 0 ? (start - block.first_state) * block.rows : 0;
  part.first_state = start - first;
  return part;
}

class ConsistentChunk {
 public:
  const States states;

  ConsistentChunk(ConsistentPass& pass, int64_t first, int64_t count)
      : ConsistentChunk(pass, first, count, drawn_states(pass, first, count), other_states(pass, first, count)) {
  }

  void visit(const ScoreBlock& block) {
    if (const ScoreBlock drawn = part_of(block, 0, drawn_count_); drawn.states > 0) {
      targets_.visit(drawn, [&](int64_t state, float& score) { target_scores_[state] = score; });
      divergence_.visit(drawn);
    }
    if (const ScoreBlock others = part_of(block, drawn_count_, states.count); others.states > 0) {
      softmax_.visit(others);
    }
  }

  void merge(int thread, int64_t number) {
    divergence_.merge(thread, number);
    softmax_.merge(thread, number);
  }

  void finish() {
    divergence_.finish();
    softmax_.finish();
    Distributions distributions(drawn_count_);
    for (int64_t state = 0; state < drawn_count_; ++state) {
      if (states.order[state] < 0) continue;
      const StateDivergence divergence = StateDivergence::of(divergence_.all(), state);
      distributions.set(state, divergence, divergence_.argmax()[state]);
      pass_.total += divergence.mean_deviation;
    }
    int64_t next_other = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (!pass_.counts(first_ + i)) continue;
      for (int64_t view = 0; view < kViews; ++view) next_other = weigh(i, view, next_other, distributions);
    }
    gradient_ = std::make_unique<DivergenceGradient>(pass_.context, states, pass_.items, kViews, false,
                                                     std::move(distributions));
  }

  void to_gradient(const ScoreBlock& block) {
    if (const ScoreBlock drawn = part_of(block, 0, drawn_count_); drawn.states > 0) {
      (*gradient_)(drawn);
      targets_.visit(drawn, [&](int64_t state, float& gradient) {
        if (!argmax_is_target(state)) gradient_->add(drawn, state, gradient, -scales_[state]);
      });
    }
    if (const ScoreBlock others = part_of(block, drawn_count_, states.count); others.states > 0) {
      softmax_.to_gradient(others);
    }
  }

  void stored(const MutableMatrix& gradient) const { gradient_->correct(pass_.scale, gradient); }

 private:
  ConsistentChunk(ConsistentPass& pass, int64_t first, int64_t count, const Order& drawn, const Order& others)
      : states(pack_states(pass.context, pass.states, joined(drawn, others), kLog2E / pass.temperature,
                           pass.arithmetic)),
        pass_(pass),
        first_(first),
        count_(count),
        drawn_count_(static_cast<int64_t>(drawn.size())),
        target_of_(targets_of(drawn)),
        targets_(target_of_),
        target_scores_(drawn_count_, 0.0f),
        scales_(drawn_count_, 0.0f),
        divergence_(pass.context, pass.items.rows, kViews, drawn_count_),
        softmax_(pass.context, pass.items.rows, others, pass.rows.targets, kViews * pass.rows.streams) {}

  // Of drawn states, -1 for those that are no row. A target that does not count changes nothing: its scale is 0.
  std::vector<int64_t> targets_of(const Order& drawn) const {
    std::vector<int64_t> targets;
    for (const int64_t row : drawn) {
      targets.push_back(row >= 0 ? pass_.rows.targets[row / (kViews * pass_.rows.streams)] : -1);
    }
    return targets;
  }

  bool argmax_is_target(int64_t drawn_state) const {
    return divergence_.argmax()[drawn_state] == target_of_[drawn_state];
  }

  // NaN, as in the reference, where a score is NaN or +inf, or all are -inf.
  double drawn_loss(int64_t state) {
    const double maximum = divergence_.all().maximum[state];
    if (!std::isfinite(maximum)) return std::nan("");
    return (maximum - target_scores_[state]) * kLn2 + std::log1p(divergence_.all().sum_of_rest[state]);
  }

  // Weighs the states of a view of the chunk's history number i, whose states that are not drawn are the chunk's others
  // from number `other` on; returns that of the next view.
  int64_t weigh(int64_t i, int64_t view, int64_t other, Distributions& distributions) {
    const int64_t history = first_ + i, streams = pass_.rows.streams, drawn = pass_.rows.drawn[history];
    const int64_t first_row = pass_.row(history, view, 0), place = drawn_place(i, view);
    std::vector<double> of_row(streams);
    for (int64_t m = 0, next = other; m < streams; ++m) {
      of_row[m] = m == drawn ? drawn_loss(place) : softmax_.loss(next++);
      pass_.losses[first_row + m] = static_cast<float>(of_row[m]);
    }
    responsibilities(pass_.rows.log_weights + first_row, of_row);
    for (int64_t m = 0; m < streams; ++m) {
      const double scale = of_row[m] * pass_.quotient;
      if (m == drawn) {
        scales_[place] = static_cast<float>(scale);
        distributions.add_cross_entropy(place, scale, argmax_is_target(place));
      } else {
        softmax_.set_scale(other++, scale);
      }
      if (pass_.weights_gradient != nullptr) {
        pass_.weights_gradient[first_row + m] = static_cast<float>(-of_row[m] * pass_.row_weight);
      }
    }
    return other;
  }

  ConsistentPass& pass_;
  const int64_t first_, count_;
  const int64_t drawn_count_;  // of the states, the first ones
  const std::vector<int64_t> target_of_;
  const Targets targets_;
  Buffer target_scores_, scales_;
  ChunkDivergence divergence_;
  ChunkSoftmax softmax_;                          // of the others
  std::unique_ptr<DivergenceGradient> gradient_;  // of the drawn ones; after finish()
};

}  // namespace

double consistent_cross_entropy_gradients(const Context& context, const Matrix& states, const Matrix& items,
                                          const ConsistentRows& rows, double temperature, double weight,
                                          int64_t chunk_states, float* losses, const MutableMatrix* states_gradient,
                                          float* weights_gradient, const MutableMatrix* items_gradient) {
  const int64_t of_history = kViews * rows.streams, histories = states.rows / of_history;
  const auto counted = static_cast<int64_t>(counted_rows(rows.targets, histories, rows.ignore_index).size());
  std::fill_n(losses, states.rows, 0.0f);
  if (weights_gradient != nullptr) std::fill_n(weights_gradient, states.rows, 0.0f);
  const double row_weight = counted > 0 ? 1.0 / static_cast<double>(kViews * counted) : 1.0;
  const double pair_weight = weight / static_cast<double>(histories);
  const float scale = static_cast<float>(pair_weight / temperature);
  const double quotient = row_weight / pair_weight;
  const Arithmetic arithmetic =
      within(choose_arithmetic(context, states, items, kLog2E / temperature), std::abs(quotient));
  ConsistentPass pass{context, states, items,  rows,  temperature, row_weight, quotient,
                      scale,   losses, weights_gradient, arithmetic};
  // Chunks of nearly equal size, and of whole Vectors of histories.
  const int64_t most = std::max<int64_t>(1, chunk_states / (of_history * kLanes)) * kLanes;
  const int64_t each = round_up(divided_up(histories, divided_up(histories, most)), kLanes);
  const int64_t largest = each * kViews + round_up(each * kViews * (rows.streams - 1), kPanelColumns);
  sweep_chunks({context, states, items, kViews * kLanes, pass.arithmetic, {states_gradient, items_gradient, scale}},
               divided_up(histories, each), largest, [&](int64_t number) {
                 const int64_t first = number * each;
                 return std::make_unique<ConsistentChunk>(pass, first, std::min(each, histories - first));
               });
  return pass.total * kLn2 / static_cast<double>(histories);
}

}  // namespace plr_kernels
