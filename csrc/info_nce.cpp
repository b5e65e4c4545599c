// Contrastive loss between two views, both ways, where rows with a label in common are no negatives of each other: their
// scores become -inf as soon as they are computed. With scores s_ij = u_i · w_j / temperature of unit vectors, the
// gradient w.r.t. s_ij is (softmax over j + softmax over i − 2 [i = j]) / (groups · batch).
//
// The first view takes the place of the states and the second that of the items. Unit vectors are made from the views
// wherever they are packed, block by block.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "score_gradients.h"
#include "states.h"
#include "target_softmax.h"
#include "targets.h"

namespace plr_kernels {

namespace {

// The rows of a group that have a label in common. Of each column of labels, the rows are sorted by label.
class SharedLabels {
 public:
  SharedLabels(const Labels& labels, int64_t first_row, int64_t rows) : rows_(rows) {
    for (int64_t column = 0; column < labels.columns; ++column) {
      std::vector<std::pair<int64_t, int64_t>> sorted(rows);  // label, row
      for (int64_t row = 0; row < rows; ++row) {
        sorted[row] = {labels.data[(first_row + row) * labels.columns + column], row};
      }
      std::sort(sorted.begin(), sorted.end());
      Column& found = columns_.emplace_back(Column{std::vector<int64_t>(rows), std::vector<Range>(rows)});
      for (int64_t begin = 0, end = 0; begin < rows; begin = end) {
        while (end < rows && sorted[end].first == sorted[begin].first) ++end;
        for (int64_t place = begin; place < end; ++place) {
          found.rows[place] = sorted[place].second;
          found.alike[sorted[place].second] = {begin, end};
        }
      }
    }
  }

  // Sets the scores of such pairs to -inf, but for each row's own; states in the order of all_rows().
  void leave_out(const ScoreBlock& block) const {
    const int64_t end_item = block.first_item + block.items;
    const int64_t end_state = std::min(block.first_state + block.states, rows_);
    for (const Column& column : columns_) {
      for (int64_t state = block.first_state; state < end_state; ++state) {
        const Range& alike = column.alike[state];
        if (alike.end - alike.begin == 1) continue;
        const auto end = column.rows.begin() + alike.end;
        auto item = std::lower_bound(column.rows.begin() + alike.begin, end, block.first_item);
        for (; item != end && *item < end_item; ++item) {
          if (*item != state) block.at(*item, state) = -std::numeric_limits<float>::infinity();
        }
      }
    }
  }

 private:
  struct Range {
    int64_t begin, end;
  };
  struct Column {
    std::vector<int64_t> rows;  // those with one label one after the other, ascending
    std::vector<Range> alike;   // per row, where in them those with its label stand
  };
  int64_t rows_;
  std::vector<Column> columns_;
};

// A group of a view as unit vectors; finds their norms.
Matrix unit_group(const Context& context, const View& view, int64_t group, int64_t batch, Buffer& norms) {
  const Matrix& vectors = view.vectors;
  norms = Buffer(batch);
  context.kernels.row_norms(vectors, group * batch, batch, norms.data());
  return {row_of(vectors, group * batch),
          vectors.type,
          batch,
          vectors.columns,
          vectors.stride,
          norms.data(),
          view.norm_floor};
}

MutableMatrix group_of(const MutableMatrix& view, int64_t group, int64_t batch) {
  return {row_of(view, group * batch), view.type, view.stride};
}

std::vector<int64_t> all_rows(int64_t batch) {
  std::vector<int64_t> rows(batch);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// The rows of a view, for products with those of the other.
States pack_view(const Context& context, const Matrix& view, const Matrix& other, double scale) {
  return pack_states(context, view, listed_order(all_rows(view.rows)), scale,
                     pairs_or_singles(takes_pairs(context, view, other)));
}

// The unit vectors times the scale, rounded as in pack_view(): their products are the same to the bit. A row takes
// panels_size(1, columns) numbers.
Buffer scaled(const Context& context, const Matrix& view, double scale) {
  const int64_t row_size = panels_size(1, view.columns);
  Buffer result(view.rows * row_size);
  for (int64_t row = 0; row < view.rows; ++row) {
    float* numbers = result.data() + row * row_size;
    context.kernels.load_rows(view, row, 1, numbers, 1);
    for (int64_t column = 0; column < view.columns; ++column) {
      numbers[column] = static_cast<float>(numbers[column] * scale);
    }
  }
  return result;
}

// 1 for every state, 0 for the padding of the last panel.
Buffer states_mask(const States& states) {
  Buffer mask(states.count);
  for (int64_t i = 0; i < states.count; ++i) mask[i] = states.order[i] >= 0 ? 1.0f : 0.0f;
  return mask;
}

// The part of the statistics [2, 3, rows] that belongs to one direction, from a row on: of each row of one view over
// the other view's rows.
template <class Number>
TargetStatistics<Number> direction_of(Number* statistics, int64_t rows, int64_t direction, int64_t first_row) {
  return TargetStatistics<Number>::of(statistics + TargetStatistics<Number>::columns * direction * rows, rows,
                                      first_row);
}

// One direction, of views whose products times the scale are the scores; returns the sum of its losses.
double one_way(const Context& context, const Matrix& view, const Matrix& other, double scale, const SharedLabels& labels,
               const TargetStatistics<float>& statistics) {
  const States states = pack_view(context, view, other, scale);
  double total = 0.0;
  visit_target_softmax(
      context, states, other, Targets(states.order, all_rows(view.rows).data()),
      [&](const ScoreBlock& block) { labels.leave_out(block); },
      [&](int64_t state, const TargetSoftmax& softmax) {
        total += softmax.loss;
        softmax.store(state, statistics);
      });
  return total;
}

// Both directions, each with its own maxima; returns the sum of their losses. Where scores are in the hundreds, a
// probability is right only if its score and the maximum come from the same rounded numbers: here and in the backward
// pass it is the first view that is scaled.
double each_way(const Context& context, const Matrix& view1, const Matrix& view2, double temperature,
                const SharedLabels& labels, const TargetStatistics<float>& first, const TargetStatistics<float>& second) {
  const double scale = kLog2E / temperature;
  if (takes_pairs(context, view1, view2)) {  // sums of products are scaled, not what is multiplied
    return one_way(context, view1, view2, scale, labels, first) + one_way(context, view2, view1, scale, labels, second);
  }
  const Buffer numbers = scaled(context, view1, scale);
  const Matrix scaled1{numbers.data(), DataType::float32, view1.rows, view1.columns, panels_size(1, view1.columns)};
  return one_way(context, scaled1, view2, 1.0, labels, first) + one_way(context, view2, scaled1, 1.0, labels, second);
}

// Both directions from one product; returns the sum of their losses. A cosine is at most 1, so 1 / temperature serves
// all rows of both as the maximum. The sums leave the positives out, so that a small loss −log p = log(1 + Σ rest /
// positive) is accurate too.
double both_ways(const Context& context, const Matrix& view1, const Matrix& view2, double temperature,
                 const SharedLabels& labels, const TargetStatistics<float>& first, const TargetStatistics<float>& second) {
  const int64_t batch = view1.rows;
  const float bound = static_cast<float>(kLog2E / temperature);
  const States states = pack_view(context, view1, view2, kLog2E / temperature);
  const Buffer mask = states_mask(states);
  const Targets positives(states.order, all_rows(batch).data());
  const ItemChunks chunks(batch);
  Buffer positive_scores(states.count);
  Buffer state_sum(chunks.count * states.count, 0.0f);
  Buffer item_sum(batch * kLanes, 0.0f);
  visit_scores(context, states, view2, kPanelColumns, [&](int64_t chunk, const ScoreBlock& block) {
    positives.visit(block, [&](int64_t state, float& score) {
      positive_scores[state] = score;
      score = -std::numeric_limits<float>::infinity();
    });
    labels.leave_out(block);
    context.kernels.update_two_way_sums(block, bound, mask.data() + block.first_state,
                                        state_sum.data() + chunk * states.count + block.first_state,
                                        item_sum.data() + block.first_item * kLanes);
  });
  double total = 0.0;
  for (int64_t i = 0; i < batch; ++i) {
    double over_items = 0.0, over_states = 0.0;
    for (int64_t chunk = 0; chunk < chunks.count; ++chunk) over_items += state_sum[chunk * states.count + i];
    for (int64_t lane = 0; lane < kLanes; ++lane) over_states += item_sum[i * kLanes + lane];
    const double positive = std::exp2(positive_scores[i] - static_cast<double>(bound));
    total += std::log1p(over_items / positive) + std::log1p(over_states / positive);
    first.maximum[i] = second.maximum[i] = bound;
    first.inverse_sum[i] = static_cast<float>(1.0 / (over_items + positive));
    second.inverse_sum[i] = static_cast<float>(1.0 / (over_states + positive));
    first.prob_of_rest[i] = static_cast<float>(over_items / (over_items + positive));
    second.prob_of_rest[i] = static_cast<float>(over_states / (over_states + positive));
  }
  return total;
}

// Whether one bound serves as the maximum of all rows: with a smaller temperature, exp2(−2 / temperature · log2 e)
// would vanish in float32.
bool bound_serves(double temperature) { return 2.0 * kLog2E / temperature < 100.0; }

// Calls visit(context, group) for every group: one thread per group where that keeps all busy, else all threads for
// each.
template <class Visit>
void for_each_group(const Context& context, int64_t groups, const Visit& visit) {
  const int threads = context.threads.count();
  if (groups % threads == 0 || groups >= 4 * threads) {
    context.threads.run(groups, [&](int64_t group, int) {
      const Threads alone = Threads::alone(threads);
      visit(Context{context.kernels, alone, context.rounds_float32}, group);
    });
  } else {
    for (int64_t group = 0; group < groups; ++group) visit(context, group);
  }
}

}  // namespace

double info_nce_forward(const Context& context, const View& view1, const View& view2, const Labels& labels,
                        int64_t groups, double temperature, float* statistics) {
  const int64_t rows = view1.vectors.rows, batch = rows / groups;
  std::vector<double> losses(groups, 0.0);
  for_each_group(context, groups, [&](const Context& group_context, int64_t group) {
    Buffer first_norms, second_norms;
    const Matrix first = unit_group(group_context, view1, group, batch, first_norms);
    const Matrix second = unit_group(group_context, view2, group, batch, second_norms);
    const TargetStatistics<float> to_second = direction_of(statistics, rows, 0, group * batch);
    const TargetStatistics<float> to_first = direction_of(statistics, rows, 1, group * batch);
    const auto directions = bound_serves(temperature) ? both_ways : each_way;
    const SharedLabels shared(labels, group * batch, batch);
    losses[group] = directions(group_context, first, second, temperature, shared, to_second, to_first);
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(rows);
}

void info_nce_backward(const Context& context, const View& view1, const View& view2, const Labels& labels,
                       int64_t groups, double temperature, const float* statistics, double loss_gradient,
                       const MutableMatrix* view1_gradient, const MutableMatrix* view2_gradient) {
  const int64_t rows = view1.vectors.rows, batch = rows / groups;
  const float scale = static_cast<float>(loss_gradient / temperature / static_cast<double>(rows));
  for_each_group(context, groups, [&](const Context& group_context, int64_t group) {
    Buffer first_norms, second_norms;
    const Matrix first = unit_group(group_context, view1, group, batch, first_norms);
    const Matrix second = unit_group(group_context, view2, group, batch, second_norms);
    const States states = pack_view(group_context, first, second, kLog2E / temperature);
    const Buffer mask = states_mask(states);
    const Targets positives(states.order, all_rows(batch).data());
    const SharedLabels shared(labels, group * batch, batch);
    const TargetStatistics<const float> to_second = direction_of(statistics, rows, 0, group * batch);
    const TargetStatistics<const float> to_first = direction_of(statistics, rows, 1, group * batch);
    const Buffer maximum = packed_column(states, to_second.maximum);
    const Buffer inverse_sum = packed_column(states, to_second.inverse_sum);
    MutableMatrix first_gradient{}, second_gradient{};
    if (view1_gradient != nullptr) first_gradient = group_of(*view1_gradient, group, batch);
    if (view2_gradient != nullptr) second_gradient = group_of(*view2_gradient, group, batch);
    backward_through_scores(
        group_context, states, first, second, kPanelColumns,
        {view1_gradient != nullptr ? &first_gradient : nullptr, view2_gradient != nullptr ? &second_gradient : nullptr,
         scale},
        [&](const ScoreBlock& block) {
          shared.leave_out(block);
          // One bound is the maximum of all rows of both directions, and one exponential does.
          const float* item_maximum = bound_serves(temperature) ? nullptr : to_first.maximum + block.first_item;
          context.kernels.two_way_softmax_gradient(
              block, maximum.data() + block.first_state, inverse_sum.data() + block.first_state, item_maximum,
              to_first.inverse_sum + block.first_item, mask.data() + block.first_state);
          positives.visit(block, [&](int64_t state, float& gradient) {
            gradient = -(to_second.prob_of_rest[state] + to_first.prob_of_rest[state]);
          });
        });
  });
}

}  // namespace plr_kernels
