// Loss of each state's target against a list of candidate items. What is computed of V items are the listed ones and the
// targets; the gradient of the others is zero.
//
// States that count are packed in tiles of 32. The scores of a tile with its K candidates are a panel [K, 32], which the
// derivatives of the losses w.r.t. them replace: `weights` [tiles, K, 32], kept for the backward pass, which hence takes
// two products. With one list for all, the products are those of matrices; with a list for each row, gathered rows.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "buffer.h"
#include "operators.h"
#include "states.h"

namespace plr_kernels {

namespace {

constexpr int64_t kTile = kPanelColumns;  // states

std::vector<int64_t> counted_rows(const int64_t* targets, int64_t rows, int64_t ignore_index) {
  std::vector<int64_t> counted;
  for (int64_t row = 0; row < rows; ++row) {
    if (targets[row] != ignore_index) counted.push_back(row);
  }
  return counted;
}

States pack_counted(const Context& context, const Matrix& states, const int64_t* targets, const CandidateLoss& loss) {
  return pack_states(context, states, listed_order(counted_rows(targets, states.rows, loss.ignore_index)),
                     kLog2E / loss.temperature, Arithmetic::singles);
}

// The items of the list that all rows share, as panels [count, dim], zeros for -1; nothing where rows have their own.
Buffer pack_shared(const Context& context, const Matrix& items, const CandidateLists& candidates) {
  if (!candidates.shared) return {};
  Buffer rows(panels_size(candidates.count, items.columns));
  for (int64_t k = 0; k < candidates.count; ++k) {
    if (candidates.ids[k] >= 0) {
      context.kernels.load_rows(items, candidates.ids[k], 1, rows.data() + k * kPanelColumns, candidates.count);
      continue;
    }
    for (int64_t d = 0; d < items.columns; d += kPanelColumns) {
      std::fill_n(rows.data() + d * candidates.count + k * kPanelColumns, kPanelColumns, 0.0f);
    }
  }
  return rows;
}

// Where a target stands in the list that all rows share.
class Places {
 public:
  explicit Places(const CandidateLists& candidates) {
    if (!candidates.shared) return;
    for (int64_t k = 0; k < candidates.count; ++k) sorted_.emplace_back(candidates.ids[k], k);
    std::sort(sorted_.begin(), sorted_.end());
  }

  template <class Visit>
  void visit(int64_t item, const Visit& visit) const {
    auto place = std::lower_bound(sorted_.begin(), sorted_.end(), std::pair(item, int64_t{0}));
    for (; place != sorted_.end() && place->first == item; ++place) visit(place->second);
  }

 private:
  std::vector<std::pair<int64_t, int64_t>> sorted_;  // item, k
};

// A row of a matrix as float32 with zeros up to a full panel.
void load_row(const Kernels& kernels, const Matrix& matrix, int64_t row, float* target) {
  // load_rows may leave the second half of the last panel alone.
  std::fill_n(target + round_up(matrix.columns, kPanelColumns) - kLanes, kLanes, 0.0f);
  kernels.load_rows(matrix, row, 1, target, 1);
}

// sum += weight · row i of panels [rows, dim].
void add_row(const float* panels, int64_t rows, int64_t i, int64_t dim, float weight, float* sum) {
  for (int64_t first = 0; first < dim; first += kPanelColumns) {
    const float* source = panels + first * rows + i * kPanelColumns;
    const int64_t columns = std::min(kPanelColumns, dim - first);
    for (int64_t d = 0; d < columns; ++d) sum[first + d] += weight * source[d];
  }
}

}  // namespace

void candidate_cross_entropy_forward(const Context& context, const Matrix& matrix, const Matrix& items,
                                     const int64_t* targets, const CandidateLists& candidates,
                                     const CandidateLoss& loss, float* losses, float* weights,
                                     float* target_weights) {
  const Kernels& kernels = context.kernels;
  const States states = pack_counted(context, matrix, targets, loss);
  const Buffer listed = pack_shared(context, items, candidates);
  const Places places(candidates);
  const int64_t count = candidates.count;
  const float scale = static_cast<float>(kLog2E / loss.temperature);
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  std::fill_n(losses, matrix.rows, 0.0f);
  std::fill_n(target_weights, matrix.rows, 0.0f);
  context.threads.run(states.count / kTile, [&](int64_t tile, int) {
    const int64_t first = tile * kTile;
    float* tile_scores = weights + first * count;
    const Scores scores{tile_scores, count, count, kTile};
    if (candidates.shared) {
      kernels.gemm(count, kTile, states.dim, {listed.data(), count},
                   {states.transposed.data() + first * states.dim, states.dim}, 1.0f, false, {tile_scores, count});
    }
    Buffer vector(round_up(states.dim, kPanelColumns));
    float target_scores[kTile] = {}, used[kTile] = {};
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const int64_t row = states.order[first + lane];
      float* column = tile_scores + lane;
      if (row < 0) {
        for (int64_t k = 0; k < count; ++k) column[k * kTile] = 0.0f;
        continue;
      }
      used[lane] = 1.0f;
      load_row(kernels, matrix, row, vector.data());
      kernels.gathered_dots(items, targets + row, 1, vector.data(), scale, target_scores + lane, 1);
      if (!candidates.shared) {
        kernels.gathered_dots(items, candidates.ids + row * count, count, vector.data(), scale, column, kTile);
      }
      if (candidates.log_q != nullptr && !candidates.shared) {
        const float* log_q = candidates.log_q + row * count;
        for (int64_t k = 0; k < count; ++k) column[k * kTile] -= static_cast<float>(kLog2E) * log_q[k];
      }
      if (candidates.shared) {
        places.visit(targets[row], [&](int64_t k) { column[k * kTile] = kNone; });
      } else {
        const int64_t* ids = candidates.ids + row * count;
        for (int64_t k = 0; k < count; ++k) {
          if (ids[k] == targets[row] || ids[k] < 0) column[k * kTile] = kNone;
        }
      }
    }
    if (candidates.shared && candidates.log_q != nullptr) {
      for (int64_t k = 0; k < count; ++k) {
        const float log_q = static_cast<float>(kLog2E) * candidates.log_q[k];
        for (int64_t lane = 0; lane < kTile; ++lane) tile_scores[k * kTile + lane] -= log_q;
      }
    }
    if (candidates.shared) {
      places.visit(-1, [&](int64_t k) { std::fill_n(tile_scores + k * kTile, kTile, kNone); });
    }
    if (loss.softmax) {
      float maximum[kTile], rest[kTile] = {}, inverse_sum[kTile];
      std::copy_n(target_scores, kTile, maximum);
      kernels.update_softmax(scores, maximum, rest);
      for (int64_t lane = 0; lane < kTile; ++lane) {
        const double below = static_cast<double>(maximum[lane]) - target_scores[lane];
        const double of_target = std::exp2(-below), total = rest[lane] + of_target;
        inverse_sum[lane] = static_cast<float>(1.0 / total);
        if (used[lane] == 0.0f) continue;
        const int64_t row = states.order[first + lane];
        losses[row] = static_cast<float>(below * kLn2 + (below > 0.0 ? std::log(total) : std::log1p(rest[lane])));
        target_weights[row] = static_cast<float>(-rest[lane] / total);
      }
      kernels.softmax_gradient(scores, maximum, inverse_sum, used);
    } else {
      const double share = 1.0 / static_cast<double>(count + 1);
      float softplus[kTile];
      for (float& each : used) each *= static_cast<float>(share);
      kernels.sigmoid_terms(scores, used, softplus);
      for (int64_t lane = 0; lane < kTile; ++lane) {
        if (used[lane] == 0.0f) continue;
        const int64_t row = states.order[first + lane];
        const double logit = kLn2 * target_scores[lane], power = loss.positive_power;
        const double of_target = std::max(-logit, 0.0) + std::log1p(std::exp(-std::abs(logit)));  // softplus(−logit)
        losses[row] = static_cast<float>(share * (power * of_target + kLn2 * softplus[lane]));
        target_weights[row] = static_cast<float>(-share * power / (1.0 + std::exp(logit)));
      }
    }
  });
}

namespace {

// What the gradients are made of.
struct Backward {
  const Context& context;
  const Matrix& items;
  const int64_t* targets;
  const CandidateLists& candidates;
  const States& states;
  const Buffer& grad_scale;  // per packed state: the gradient w.r.t. its loss, over the temperature
  const float* weights;
  const float* target_weights;
};

void states_gradient_of(const Backward& given, const Matrix& matrix, const MutableMatrix& gradient) {
  const Kernels& kernels = given.context.kernels;
  const States& states = given.states;
  const int64_t count = given.candidates.count, dim = states.dim, width = round_up(dim, kPanelColumns);
  const Buffer listed = pack_shared(given.context, given.items, given.candidates);
  fill_zero(gradient, matrix.rows, dim);
  given.context.threads.run(states.count / kTile, [&](int64_t tile, int) {
    const int64_t first = tile * kTile;
    const float* weights = given.weights + first * count;
    Buffer sums(kTile * width, 0.0f), sum(width);
    if (given.candidates.shared) {
      kernels.gemm_transposed(kTile, round_up(dim, kLanes), count, {weights, count}, {listed.data(), count},
                              {sums.data(), kTile});
    }
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const int64_t row = states.order[first + lane];
      if (row < 0) continue;
      std::fill_n(sum.data(), width, 0.0f);
      kernels.gathered_sum(given.items, given.targets + row, 1, given.target_weights + row, 1, sum.data());
      if (given.candidates.shared) {
        add_row(sums.data(), kTile, lane, dim, 1.0f, sum.data());
      } else {
        kernels.gathered_sum(given.items, given.candidates.ids + row * count, count, weights + lane, kTile, sum.data());
      }
      kernels.store_rows(sum.data(), 1, 1, dim, given.grad_scale[first + lane], gradient, row);
    }
  });
}

// A row of the gradient: the item, and what adds to it, a number below the number of states for a target's.
using Addend = std::pair<int64_t, int64_t>;

// All that adds to the gradient of the items, by item.
std::vector<Addend> sorted_addends(const Backward& given) {
  const States& states = given.states;
  const int64_t count = given.candidates.count;
  std::vector<Addend> addends;
  for (int64_t state = 0; state < states.count; ++state) {
    if (states.order[state] >= 0) addends.emplace_back(given.targets[states.order[state]], state);
  }
  for (int64_t list = 0; list < (given.candidates.shared ? 1 : states.count); ++list) {
    const int64_t row = given.candidates.shared ? 0 : states.order[list];
    if (row < 0) continue;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t item = given.candidates.ids[row * count + k];
      if (item >= 0) addends.emplace_back(item, states.count + list * count + k);
    }
  }
  std::sort(addends.begin(), addends.end());
  return addends;
}

void items_gradient_of(const Backward& given, const MutableMatrix& gradient) {
  const Kernels& kernels = given.context.kernels;
  const States& states = given.states;
  const int64_t count = given.candidates.count, dim = states.dim;
  Buffer scaled(panels_size(states.count, dim));  // states times grad_scale, panels [count of states, dim]
  for (int64_t d = 0; d < dim; d += kPanelColumns) {
    for (int64_t state = 0; state < states.count; ++state) {
      const int64_t at = d * states.count + state * kPanelColumns;
      for (int64_t i = at; i < at + kPanelColumns; ++i) scaled[i] = states.rows[i] * given.grad_scale[state];
    }
  }
  Buffer of_listed(given.candidates.shared ? panels_size(count, dim) : 0, 0.0f);  // zeros where no row counts
  if (given.candidates.shared && states.count > 0) {
    constexpr int64_t block = 32;  // candidates
    given.context.threads.run((count + block - 1) / block, [&](int64_t number, int) {
      const int64_t first = number * block, rows = std::min(block, count - first);
      kernels.gemm(rows, round_up(dim, kLanes), states.count, {given.weights + first * kPanelColumns, count},
                   {scaled.data(), states.count}, 1.0f, false, {of_listed.data() + first * kPanelColumns, count});
    });
  }

  constexpr int64_t block = 4096;  // items set to zero at a time
  given.context.threads.run((given.items.rows + block - 1) / block, [&](int64_t number, int) {
    const int64_t first = number * block;
    fill_zero({row_of(gradient, first), gradient.type, gradient.stride}, std::min(block, given.items.rows - first), dim);
  });
  const std::vector<Addend> addends = sorted_addends(given);
  const int64_t total = static_cast<int64_t>(addends.size());
  constexpr int64_t share = 2048;  // addends; an item belongs to the task that has its first one
  given.context.threads.run((total + share - 1) / share, [&](int64_t number, int) {
    Buffer sum(round_up(dim, kPanelColumns));
    int64_t at = number * share;
    while (at > 0 && at < total && addends[at].first == addends[at - 1].first) ++at;
    while (at < std::min(total, (number + 1) * share)) {
      const int64_t item = addends[at].first;
      std::fill_n(sum.data(), round_up(dim, kPanelColumns), 0.0f);
      for (; at < total && addends[at].first == item; ++at) {
        const int64_t source = addends[at].second - states.count;
        if (source < 0) {
          const int64_t state = addends[at].second;
          add_row(scaled.data(), states.count, state, dim, given.target_weights[states.order[state]], sum.data());
        } else if (given.candidates.shared) {
          add_row(of_listed.data(), count, source, dim, 1.0f, sum.data());
        } else {
          const int64_t state = source / count, k = source % count;
          const float weight = given.weights[(state / kTile * count + k) * kTile + state % kTile];
          add_row(scaled.data(), states.count, state, dim, weight, sum.data());
        }
      }
      kernels.store_rows(sum.data(), 1, 1, dim, 1.0f, gradient, item);
    }
  });
}

}  // namespace

void candidate_cross_entropy_backward(const Context& context, const Matrix& matrix, const Matrix& items,
                                      const int64_t* targets, const CandidateLists& candidates,
                                      const CandidateLoss& loss, const float* weights, const float* target_weights,
                                      const float* losses_gradient, const MutableMatrix* states_gradient,
                                      const MutableMatrix* items_gradient) {
  const States states = pack_counted(context, matrix, targets, loss);
  Buffer grad_scale(states.count);
  for (int64_t state = 0; state < states.count; ++state) {
    const int64_t row = states.order[state];
    grad_scale[state] = row < 0 ? 0.0f : static_cast<float>(losses_gradient[row] / loss.temperature);
  }
  const Backward given{context, items, targets, candidates, states, grad_scale, weights, target_weights};
  if (states_gradient != nullptr) states_gradient_of(given, matrix, *states_gradient);
  if (items_gradient != nullptr) items_gradient_of(given, *items_gradient);
}

}  // namespace plr_kernels
