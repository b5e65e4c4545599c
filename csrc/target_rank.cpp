// target_rank and target_mixture_rank: how many items score above each row's target, and how many the same.
//
// The target's score comes from the products that its block's scores come from, so that it equals itself, and items
// with equal vectors tie. Under a mixture items are compared by how far their probabilities exceed the target's, whose
// scores are t_m,
//
//     Σ_m w_m (exp2(scale · (d_m − t_m)) − 1),      w_m = exp2(o_m + scale · t_m − c),  c the target's largest exponent,
//
// in float32: what counts is differences of scores, of which none is lost in large scores, nor in a large temperature.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "buffer.h"
#include "exclusions.h"
#include "mixture.h"
#include "operators.h"
#include "panels.h"
#include "score_sweeps.h"
#include "states.h"

namespace plr_kernels {

namespace {

// What is ranked, and where the counts go. One stream without weights is a plain dot product.
struct RankCall {
  const Matrix& states;      // [rows · streams, dim]
  const float* log_weights;  // [rows, streams]; null for dot products
  int64_t streams;
  double scale;
  const Matrix& items;
  const int64_t* targets;  // [rows]
  ExcludedIds excluded;
  int64_t* greater;  // [rows]
  int64_t* equal;    // [rows]

  bool is_mixture() const { return log_weights != nullptr; }
  int64_t rows() const { return states.rows / streams; }
};

// Counts of `slots` lanes, in groups of 16.
class Counts {
 public:
  Counts(const Context& context, int64_t groups)
      : kernels_(context.kernels), groups_(groups), of_threads_(context.threads.count(), OfThread(groups)) {}

  void add(int thread, int64_t group, const float* scores, int64_t step, int64_t vectors, const float* bar) {
    OfThread& own = of_threads_[thread];
    constexpr int64_t exact_counts = 1 << 24;  // of float32
    // At half of them, as a group may be some blocks ahead of its share of what all groups have had.
    if (own.since_flush > exact_counts / 2 * groups_) own.flush();
    own.since_flush += vectors;
    float* counts = own.floats.data() + group * 3 * kLanes;
    kernels_.count_against(scores, step, vectors, bar, counts, counts + kLanes, counts + 2 * kLanes);
  }

  // Where the kernel that computes a group's scores marks those that are not finite.
  float* not_finite(int thread, int64_t group) { return of_threads_[thread].floats.data() + (group * 3 + 2) * kLanes; }

  // Takes a counted score out again.
  void leave_out(int thread, int64_t slot, float score, float bar) {
    OfThread& own = of_threads_[thread];
    own.greater[slot] -= score > bar;
    own.less[slot] -= score < bar;
    ++own.left_out[slot];
  }

  struct Total {
    int64_t greater = 0, less = 0, left_out = 0;
    bool finite = true;
  };
  // Of slots [first, last), when all is counted.
  Total total(int64_t first, int64_t last) {
    Total result;
    for (OfThread& own : of_threads_) {
      own.flush();
      for (int64_t slot = first; slot < last; ++slot) {
        result.greater += own.greater[slot];
        result.less += own.less[slot];
        result.left_out += own.left_out[slot];
        result.finite = result.finite && own.floats[(slot / kLanes * 3 + 2) * kLanes + slot % kLanes] == 0.0f;
      }
    }
    return result;
  }

 private:
  struct OfThread {
    explicit OfThread(int64_t groups)
        : floats(groups * 3 * kLanes, 0.0f), greater(groups * kLanes), less(groups * kLanes), left_out(groups * kLanes) {}

    void flush() {
      if (since_flush == 0) return;
      for (std::size_t slot = 0; slot < greater.size(); ++slot) {
        float* counts = floats.data() + slot / kLanes * 3 * kLanes + slot % kLanes;
        greater[slot] += static_cast<int64_t>(counts[0]);
        less[slot] += static_cast<int64_t>(counts[kLanes]);
        counts[0] = counts[kLanes] = 0.0f;
      }
      since_flush = 0;
    }

    std::vector<float> floats;  // [groups, 3, 16]: greater, less, not finite
    std::vector<int64_t> greater, less, left_out;
    int64_t since_flush = 0;
  };

  const Kernels& kernels_;
  int64_t groups_;
  std::vector<OfThread> of_threads_;
};

// What the scores of groups of 16 lanes are held against: a row's target in each lane.
class Bars {
 public:
  Bars(const Context& context, const RankCall& call, int64_t groups)
      : context_(context),
        call_(call),
        bars_(groups * kLanes, 0.0f),
        anchors_(call.is_mixture() ? groups * unit() : 0, 0.0f) {}

  float* bar(int64_t group) { return bars_.data() + group * kLanes; }
  const float* anchors(int64_t group) { return anchors_.data() + group * unit(); }

  // From the target's scores [streams, 16], in every lane its row's; row_of(lane) is the row or −1. Z of the streams of
  // a lane's row are lse[lse_of(lane, stream)].
  template <class RowOf, class LseOf>
  void set(int64_t group, const float* target_scores, const RowOf& row_of, const std::vector<double>& lse,
           const LseOf& lse_of) {
    if (!call_.is_mixture()) {
      std::copy_n(target_scores, kLanes, bar(group));
      return;
    }
    float* anchors = anchors_.data() + group * unit();
    std::vector<double> offsets(call_.streams), terms(call_.streams);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t row = row_of(lane);
      if (row < 0) continue;
      double largest = -std::numeric_limits<double>::infinity();
      for (int64_t m = 0; m < call_.streams; ++m) {
        offsets[m] = call_.log_weights[row * call_.streams + m] * kLog2E - lse[lse_of(lane, m)];
        terms[m] = offsets[m] + call_.scale * static_cast<double>(target_scores[m * kLanes + lane]);
        largest = std::isnan(terms[m]) || std::isnan(largest) ? std::numeric_limits<double>::quiet_NaN()
                                                              : std::max(largest, terms[m]);
      }
      // Not finite: then all of the row's probabilities are NaN, and it is marked.
      if (!std::isfinite(largest)) largest = std::numeric_limits<double>::quiet_NaN();
      for (int64_t m = 0; m < call_.streams; ++m) {
        // A stream that has next to no part in the target's probability may have one in others'.
        constexpr double least_part = -60.0;
        const Anchor anchor = terms[m] - largest < least_part
                                  ? Anchor::at_total(offsets[m], call_.scale, largest)
                                  : Anchor::at_score(target_scores[m * kLanes + lane], terms[m] - largest);
        anchor.store(anchors, m, lane);
      }
    }
    std::vector<const float*> streams(call_.streams);
    for (int64_t m = 0; m < call_.streams; ++m) streams[m] = target_scores + m * kLanes;
    float not_finite[kLanes] = {};
    context_.kernels.mix_streams(streams.data(), call_.streams, kLanes, 1, kernel_scale(call_.scale), anchors, bar(group),
                                 not_finite);
  }

 private:
  int64_t unit() const { return call_.streams * kAnchorNumbers * kLanes; }

  const Context& context_;
  const RankCall& call_;
  Buffer bars_;     // [groups, 16]
  Buffer anchors_;  // [groups, streams, 3, 16]
};

void store(const RankCall& call, int64_t row, const Counts::Total& total) {
  call.greater[row] = total.finite ? total.greater : -1;
  call.equal[row] = total.finite ? call.items.rows - 1 - total.left_out - total.greater - total.less : -1;
}

// Marks an entry that was left out already, as an id may be excluded twice.
constexpr float kLeftOut = std::numeric_limits<float>::quiet_NaN();

// A group of lanes for every row: the lanes are items.
void rank_by_gemv(const Context& context, const RankCall& call) {
  const int64_t rows = call.rows(), streams = call.streams;
  const GemvSweep sweep(context, call.states, call.items);
  const int64_t block_items = sweep.block_items();
  const Exclusions exclusions(call.excluded, 0, rows, call.items.rows, block_items);
  std::vector<double> lse;
  if (call.is_mixture()) lse = log_sum_exp(context, sweep, call.scale);

  Bars bars(context, call, rows);
  Buffer of_target(streams), target_scores(streams * kLanes);
  // One task, as they take no time: by a task, since those of the sweep take subnormal numbers for zeros, too.
  context.threads.run(1, [&](int64_t, int) {
    for (int64_t row = 0; row < rows; ++row) {
      sweep.of_item(call.targets[row], row * streams, streams, of_target.data());
      for (int64_t m = 0; m < streams; ++m) {
        std::fill_n(target_scores.data() + m * kLanes, kLanes, of_target[m]);
      }
      bars.set(
          row, target_scores.data(), [&](int64_t) { return row; }, lse,
          [&](int64_t, int64_t m) { return row * streams + m; });
    }
  });

  Counts counts(context, rows);
  Buffer mixed(call.is_mixture() ? block_items * context.threads.count() : 0);
  sweep.run([&](int64_t, int thread, int64_t first_item, int64_t count, float* block) {
    const int64_t vectors = round_up(count, kLanes) / kLanes;
    std::vector<const float*> of_streams(streams);
    for (int64_t row = 0; row < rows; ++row) {
      float* scores = block + row * streams * block_items;
      const float* bar = bars.bar(row);
      if (call.is_mixture()) {
        for (int64_t m = 0; m < streams; ++m) {
          float* of_stream = scores + m * block_items;
          std::fill(of_stream + count, of_stream + vectors * kLanes, 0.0f);
          of_streams[m] = of_stream;
        }
        scores = mixed.data() + thread * block_items;
        context.kernels.mix_streams(of_streams.data(), streams, kLanes, vectors, kernel_scale(call.scale),
                                    bars.anchors(row), scores, counts.not_finite(thread, row));
      }
      std::fill(scores + count, scores + vectors * kLanes, bar[0]);  // neither greater nor less
      counts.add(thread, row, scores, kLanes, vectors, bar);
      exclusions.visit(first_item, row, row + 1, [&](int64_t, int64_t item) {
        if (first_item + item == call.targets[row] || std::isnan(scores[item])) return;
        counts.leave_out(thread, row * kLanes, scores[item], bar[0]);
        scores[item] = kLeftOut;
      });
    }
  });
  for (int64_t row = 0; row < rows; ++row) store(call, row, counts.total(row * kLanes, (row + 1) * kLanes));
}

// Rows [first_row, first_row + rows), one a lane.
void rank_by_gemm(const Context& context, const RankCall& call, int64_t first_row, int64_t rows, bool paired) {
  const int64_t streams = call.streams, unit = streams * kLanes;
  Order order = grouped_order(rows, streams);
  for (int64_t& state : order) state += state >= 0 ? first_row * streams : 0;
  const GemmSweep sweep(context, call.states, std::move(order), call.items, paired);
  const int64_t block_items = sweep.block_items(), groups = divided_up(rows, kLanes);
  const Exclusions exclusions(call.excluded, first_row, rows, call.items.rows, block_items);
  std::vector<double> lse;
  if (call.is_mixture()) lse = log_sum_exp(context, sweep, call.scale);

  Bars bars(context, call, groups);
  context.threads.run(groups, [&](int64_t group, int) {
    Buffer copied(sweep.copied_item()), scores(kPanelColumns), target_scores(unit, 0.0f);
    const auto row_of = [&](int64_t lane) {
      return group * kLanes + lane < rows ? first_row + group * kLanes + lane : int64_t{-1};
    };
    const int64_t first = group * unit;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      if (row_of(lane) < 0) continue;
      for (int64_t state = first / kPanelColumns * kPanelColumns; state < first + unit; state += kPanelColumns) {
        sweep.of_item(call.targets[row_of(lane)], state, copied.data(), scores.data());
        for (int64_t m = 0; m < streams; ++m) {
          const int64_t column = first + m * kLanes + lane - state;
          if (column >= 0 && column < kPanelColumns) target_scores[m * kLanes + lane] = scores[column];
        }
      }
    }
    bars.set(group, target_scores.data(), row_of, lse,
             [&](int64_t lane, int64_t m) { return first + m * kLanes + lane; });
  });

  Counts counts(context, groups);
  Buffer mixed(call.is_mixture() ? block_items * kLanes * context.threads.count() : 0);
  const int64_t tasks = std::min<int64_t>(sweep.blocks(), 16 * context.threads.count());
  sweep.run(tasks, states_per_block(unit, kPanelColumns), [&](int64_t, const ScoreBlock& block) {
    std::vector<const float*> of_streams(streams);
    const int64_t end = std::min(groups, (block.first_state + block.states) / unit);
    for (int64_t group = block.first_state / unit; group < end; ++group) {
      float* scores = &block.at(block.first_item, group * unit);
      int64_t step = kPanelColumns;
      if (call.is_mixture()) {
        for (int64_t m = 0; m < streams; ++m) of_streams[m] = &block.at(block.first_item, group * unit + m * kLanes);
        scores = mixed.data() + block.thread * block_items * kLanes;
        context.kernels.mix_streams(of_streams.data(), streams, kPanelColumns, block.items, kernel_scale(call.scale),
                                    bars.anchors(group), scores, counts.not_finite(block.thread, group));
        step = kLanes;
      }
      const float* bar = bars.bar(group);
      counts.add(block.thread, group, scores, step, block.items, bar);
      const int64_t first = group * kLanes, last = std::min(rows, first + kLanes);
      exclusions.visit(block.first_item, first, last, [&](int64_t row, int64_t item) {
        float& score = scores[item * step + row - first];
        if (block.first_item + item == call.targets[first_row + row] || std::isnan(score)) return;
        counts.leave_out(block.thread, row, score, bar[row - first]);
        score = kLeftOut;
      });
    }
  });
  for (int64_t row = 0; row < rows; ++row) store(call, first_row + row, counts.total(row, row + 1));
}

void rank(const Context& context, const RankCall& call) {
  constexpr int64_t rows_together = 1024;
  const int64_t rows = call.rows();
  if (rows == 0) return;
  if (GemvSweep::suits(call.states, call.streams)) {
    rank_by_gemv(context, call);
    return;
  }
  const bool paired = GemmSweep::takes_pairs(context, call.states, call.items);
  const int64_t together = std::max(round_up(rows_together / call.streams, kPanelColumns), kPanelColumns);
  for (int64_t first = 0; first < rows; first += together) {
    rank_by_gemm(context, call, first, std::min(together, rows - first), paired);
  }
}

}  // namespace

void target_rank(const Context& context, const Matrix& states, const Matrix& items, const int64_t* targets,
                 const ExcludedIds& excluded, int64_t* greater, int64_t* equal) {
  rank(context, {states, nullptr, 1, 1.0, items, targets, excluded, greater, equal});
}

void target_mixture_rank(const Context& context, const Matrix& states, const float* log_weights, int64_t streams,
                         const Matrix& items, const int64_t* targets, double temperature, const ExcludedIds& excluded,
                         int64_t* greater, int64_t* equal) {
  rank(context, {states, log_weights, streams, kLog2E / temperature, items, targets, excluded, greater, equal});
}

}  // namespace plr_kernels
