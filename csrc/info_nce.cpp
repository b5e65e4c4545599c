// Contrastive loss between two views, both ways. With scores s_ij = u_i · w_j / temperature of unit vectors, the gradient
// by s_ij is (softmax over j + softmax over i − 2 [i = j]) / (groups · batch).
//
// The first view takes the place of the states and the second that of the items. Unit vectors are made from the views
// wherever they are packed, block by block.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "buffer.h"
#include "operators.h"
#include "score_blocks.h"
#include "softmax_statistics.h"
#include "states.h"
#include "targets.h"

namespace plr_kernels {

namespace {

// A group of a view as unit vectors; finds their norms.
Matrix unit_group(const Run& run, const View& view, int64_t group, int64_t batch, Buffer& norms) {
  const Matrix& vectors = view.vectors;
  norms = Buffer(batch);
  run.kernels.row_norms(vectors, group * batch, batch, norms.data());
  return {row_of(vectors, group * batch), vectors.type, batch, vectors.columns, vectors.stride, norms.data(),
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
States packed(const Run& run, const Matrix& view, const Matrix& other, double scale) {
  return pack_states(run.kernels, view, listed_order(all_rows(view.rows)), scale, takes_pairs(run, view, other),
                     run.threads);
}

// The unit vectors times the scale, rounded as in packed(): their products are the same to the bit. A row takes
// panels_size(1, columns) numbers.
Buffer scaled(const Run& run, const Matrix& view, double scale) {
  const int64_t row_size = panels_size(1, view.columns);
  Buffer result(view.rows * row_size);
  for (int64_t row = 0; row < view.rows; ++row) {
    float* numbers = result.data() + row * row_size;
    run.kernels.load_rows(view, row, 1, numbers, 1);
    for (int64_t column = 0; column < view.columns; ++column) {
      numbers[column] = static_cast<float>(numbers[column] * scale);
    }
  }
  return result;
}

// 1 for every state, 0 for what fills up the last panel.
Buffer counted_states(const States& states) {
  Buffer counted(states.count);
  for (int64_t i = 0; i < states.count; ++i) counted[i] = states.order[i] >= 0 ? 1.0f : 0.0f;
  return counted;
}

// Of each row of one view over the other view's rows, [batch] each.
template <class Number>
struct Direction {
  Number* maximum;      // the largest score m, or a bound of it
  Number* inverse_sum;  // 1 / Σ exp2(s − m)
  Number* others;       // the probability of all rows but the positive
};

// Part of the statistics [2, 3, rows]: of one direction, from a row on.
template <class Number>
Direction<Number> direction_of(Number* statistics, int64_t rows, int64_t direction, int64_t first_row) {
  Number* start = statistics + 3 * direction * rows + first_row;
  return {start, start + rows, start + 2 * rows};
}

// One direction, of views whose products times the scale are the scores; returns the sum of its losses.
double one_way(const Run& run, const Matrix& view, const Matrix& other, double scale, const Direction<float>& result) {
  const States states = packed(run, view, other, scale);
  const Targets positives(states.order, all_rows(view.rows).data());
  Buffer positive_scores(states.count);
  SoftmaxStatistics softmax(ItemChunks(other.rows).count, states.count);
  visit_scores(run.kernels, states, other, kPanelColumns, run.threads, [&](int64_t chunk, const ScoreBlock& block) {
    positives.visit(block, [&](int64_t state, float& score) {
      positive_scores[state] = score;
      score = std::numeric_limits<float>::lowest();  // finite: there may be no other row
    });
    run.kernels.update_softmax(block.scores, block.scores_rows, block.items, block.states,
                               softmax.maximum(chunk) + block.first_state, softmax.sum(chunk) + block.first_state);
  });
  softmax.merge(run.kernels);
  double total = 0.0;
  for (int64_t i = 0; i < view.rows; ++i) {
    const auto [loss, maximum, inverse_sum, others] =
        with_target(softmax.maximum()[i], softmax.sum()[i], positive_scores[i]);
    total += loss;
    result.maximum[i] = maximum;
    result.inverse_sum[i] = inverse_sum;
    result.others[i] = others;
  }
  return total;
}

// Both directions, each with its own maxima; returns the sum of their losses. Where scores are in the hundreds, a
// probability is right only if its score and the maximum come from the same rounded numbers: here and in the backward
// pass it is the first view that is scaled.
double each_way(const Run& run, const Matrix& view1, const Matrix& view2, double temperature,
                const Direction<float>& first, const Direction<float>& second) {
  const double scale = kLog2E / temperature;
  if (takes_pairs(run, view1, view2)) {  // sums of products are scaled, not what is multiplied
    return one_way(run, view1, view2, scale, first) + one_way(run, view2, view1, scale, second);
  }
  const Buffer numbers = scaled(run, view1, scale);
  const Matrix scaled1{numbers.data(), DataType::float32, view1.rows, view1.columns, panels_size(1, view1.columns)};
  return one_way(run, scaled1, view2, 1.0, first) + one_way(run, view2, scaled1, 1.0, second);
}

// Both directions from one product; returns the sum of their losses. A cosine is at most 1, so 1 / temperature serves all
// rows of both as the maximum. The sums leave the positives out, so that a small loss −log p = log(1 + Σ others /
// positive) is accurate too.
double both_ways(const Run& run, const Matrix& view1, const Matrix& view2, double temperature,
                 const Direction<float>& first, const Direction<float>& second) {
  const int64_t batch = view1.rows;
  const float bound = static_cast<float>(kLog2E / temperature);
  const States states = packed(run, view1, view2, kLog2E / temperature);
  const Buffer counted = counted_states(states);
  const Targets positives(states.order, all_rows(batch).data());
  const ItemChunks chunks(batch);
  Buffer positive_scores(states.count);
  Buffer state_sum(chunks.count * states.count, 0.0f);
  Buffer item_sum(batch * kLanes, 0.0f);
  visit_scores(run.kernels, states, view2, kPanelColumns, run.threads, [&](int64_t chunk, const ScoreBlock& block) {
    positives.visit(block, [&](int64_t state, float& score) {
      positive_scores[state] = score;
      score = -std::numeric_limits<float>::infinity();
    });
    run.kernels.update_both_sums(block.scores, block.scores_rows, block.items, block.states, bound,
                                 counted.data() + block.first_state,
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
    first.others[i] = static_cast<float>(over_items / (over_items + positive));
    second.others[i] = static_cast<float>(over_states / (over_states + positive));
  }
  return total;
}

// With a smaller temperature, exp2(−2 / temperature · log2 e) would vanish in float32.
bool bound_serves(double temperature) { return 2.0 * kLog2E / temperature < 100.0; }

// Calls visit(run, group) for every group: one thread per group where that keeps all busy, else all threads for each.
template <class Visit>
void for_each_group(const Run& run, int64_t groups, const Visit& visit) {
  const int threads = run.threads.count();
  if (groups % threads == 0 || groups >= 4 * threads) {
    run.threads.run(groups, [&](int64_t group, int) {
      Threads alone = Threads::alone(threads);
      visit(Run{run.kernels, alone, run.rounds_float32}, group);
    });
  } else {
    for (int64_t group = 0; group < groups; ++group) visit(run, group);
  }
}

}  // namespace

double info_nce_forward(const Run& run, const View& view1, const View& view2, int64_t groups, double temperature,
                        float* statistics) {
  const int64_t rows = view1.vectors.rows, batch = rows / groups;
  std::vector<double> losses(groups, 0.0);
  for_each_group(run, groups, [&](const Run& own, int64_t group) {
    Buffer first_norms, second_norms;
    const Matrix first = unit_group(own, view1, group, batch, first_norms);
    const Matrix second = unit_group(own, view2, group, batch, second_norms);
    const Direction<float> to_second = direction_of(statistics, rows, 0, group * batch);
    const Direction<float> to_first = direction_of(statistics, rows, 1, group * batch);
    const auto directions = bound_serves(temperature) ? both_ways : each_way;
    losses[group] = directions(own, first, second, temperature, to_second, to_first);
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(rows);
}

void info_nce_backward(const Run& run, const View& view1, const View& view2, int64_t groups, double temperature,
                       const float* statistics, double weight, const MutableMatrix* view1_gradient,
                       const MutableMatrix* view2_gradient) {
  const int64_t rows = view1.vectors.rows, batch = rows / groups;
  const float scale = static_cast<float>(weight / temperature / static_cast<double>(rows));
  for_each_group(run, groups, [&](const Run& own, int64_t group) {
    Buffer first_norms, second_norms;
    const Matrix first = unit_group(own, view1, group, batch, first_norms);
    const Matrix second = unit_group(own, view2, group, batch, second_norms);
    const States states = packed(own, first, second, kLog2E / temperature);
    const Buffer counted = counted_states(states);
    const Targets positives(states.order, all_rows(batch).data());
    const Direction<const float> to_second = direction_of(statistics, rows, 0, group * batch);
    const Direction<const float> to_first = direction_of(statistics, rows, 1, group * batch);
    Buffer maximum(states.count, 0.0f), inverse_sum(states.count, 0.0f);
    std::copy_n(to_second.maximum, batch, maximum.data());
    std::copy_n(to_second.inverse_sum, batch, inverse_sum.data());
    MutableMatrix first_gradient{}, second_gradient{};
    if (view1_gradient != nullptr) first_gradient = group_of(*view1_gradient, group, batch);
    if (view2_gradient != nullptr) second_gradient = group_of(*view2_gradient, group, batch);
    backward_through_scores(own.kernels, states, first, second, kPanelColumns,
                            {view1_gradient != nullptr ? &first_gradient : nullptr, scale,
                             view2_gradient != nullptr ? &second_gradient : nullptr, scale},
                            own.threads, [&](const ScoreBlock& block) {
                              // One bound is the maximum of all rows of both directions, and one exponential does.
                              const float* item_maximum =
                                  bound_serves(temperature) ? nullptr : to_first.maximum + block.first_item;
                              own.kernels.both_softmax_gradient(
                                  block.scores, block.scores_rows, block.items, block.states,
                                  maximum.data() + block.first_state, inverse_sum.data() + block.first_state,
                                  item_maximum, to_first.inverse_sum + block.first_item,
                                  counted.data() + block.first_state);
                              positives.visit(block, [&](int64_t state, float& gradient) {
                                gradient = -(to_second.others[state] + to_first.others[state]);
                              });
                            });
  });
}

}  // namespace plr_kernels
