// Mixtures of item distributions: with scores d_m of a row's streams, s = log2 Σ_m exp2(o_m + scale · d_m), where
// o_m = log2(weight_m) − Z_m and Z_m is the log-sum-exp of the stream over all items.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "operators.h"
#include "score_sweeps.h"

namespace plr_kernels {

// The scale as kernels take it, of differences of scores: float32 numbers above zero and finite.
inline float kernel_scale(double scale) {
  return static_cast<float>(std::clamp<double>(scale, std::numeric_limits<float>::min(), std::numeric_limits<float>::max()));
}

// Z of every state, in units of log2, from parts of the items: their largest scores and sums of float32. Which parts is
// a matter of sizes alone, so that the result does not depend on the number of threads.
class LogSumExp {
 public:
  // Of a sweep with a state's scores side by side.
  template <class Sweep>
  LogSumExp(const Context& context, const Sweep& sweep, double scale)
      : LogSumExp(context, sweep.tasks(), sweep.states(), scale) {
    lanes_ = Buffer(2 * kLanes * states_ * context.threads.count());
    reset_lanes(0, states_ * context.threads.count());
  }
  LogSumExp(const Context& context, const GemmSweep& sweep, double scale)
      : LogSumExp(context, tasks(sweep), sweep.states(), scale) {}

  static int64_t tasks(const GemmSweep& sweep) { return std::min<int64_t>(sweep.blocks(), 32); }

  // The scores [count] of one state, some items of a task of the sweep; those up to the next multiple of 16 are
  // overwritten.
  void add_row(int64_t task, int thread, int64_t state, float* scores, int64_t count, bool last_of_task) {
    std::fill(scores + count, scores + round_up(count, kLanes), -std::numeric_limits<float>::infinity());
    const int64_t place = thread * states_ + state;
    float* maximum = lanes_.data() + place * 2 * kLanes;
    float* sum = maximum + kLanes;
    kernels_.update_lane_softmax(scores, kLanes, round_up(count, kLanes) / kLanes, kernel_scale(scale_), maximum, sum);
    if (!last_of_task) return;
    double m = maximum[0], total = 0.0;
    for (int lane = 1; lane < kLanes; ++lane) m = std::max<double>(m, maximum[lane]);
    for (int lane = 0; lane < kLanes; ++lane) total += sum[lane] * std::exp2((maximum[lane] - m) * scale_);
    maximum_[task * states_ + state] = static_cast<float>(m);
    sum_[task * states_ + state] = static_cast<float>(total);
    reset_lanes(place, place + 1);
  }

  // A block of scores of a task of the sweep.
  void add_block(int64_t task, const ScoreBlock& block) {
    for (int64_t state = 0; state < block.states; state += kLanes) {
      const int64_t place = task * states_ + block.first_state + state;
      kernels_.update_lane_softmax(&block.at(block.first_item, block.first_state + state), kPanelColumns, block.items,
                                   kernel_scale(scale_), maximum_.data() + place, sum_.data() + place);
    }
  }

  // NaN for a state with a score that is NaN or +infinity; −infinity where all are.
  std::vector<double> of_states() const {
    std::vector<double> result(states_);
    for (int64_t state = 0; state < states_; ++state) {
      double m = maximum_[state], total = 0.0;
      for (int64_t part = 1; part < parts_; ++part) m = std::max<double>(m, maximum_[part * states_ + state]);
      for (int64_t part = 0; part < parts_; ++part) {
        total += sum_[part * states_ + state] * std::exp2((maximum_[part * states_ + state] - m) * scale_);
      }
      result[state] = scale_ * m + std::log2(total);
    }
    return result;
  }

 private:
  LogSumExp(const Context& context, int64_t parts, int64_t states, double scale)
      : kernels_(context.kernels),
        parts_(parts),
        states_(states),
        scale_(scale),
        maximum_(parts * states, std::numeric_limits<float>::lowest()),
        sum_(parts * states, 0.0f) {}

  void reset_lanes(int64_t first, int64_t last) {
    for (int64_t place = first; place < last; ++place) {
      std::fill_n(lanes_.data() + place * 2 * kLanes, kLanes, std::numeric_limits<float>::lowest());
      std::fill_n(lanes_.data() + place * 2 * kLanes + kLanes, kLanes, 0.0f);
    }
  }

  const Kernels& kernels_;
  int64_t parts_;
  int64_t states_;
  double scale_;
  Buffer maximum_;  // [parts, states], of the scores
  Buffer sum_;
  Buffer lanes_;  // [threads, states, 2, 16], of the task at work
};

// Z of every state by a sweep of its own.
inline std::vector<double> log_sum_exp(const Context& context, const GemvSweep& sweep, double scale) {
  LogSumExp result(context, sweep, scale);
  sweep.run([&](int64_t task, int thread, int64_t first_item, int64_t count, float* scores) {
    const bool last = sweep.ends_task(task, first_item, count);
    for (int64_t state = 0; state < sweep.states(); ++state) {
      result.add_row(task, thread, state, scores + state * sweep.block_items(), count, last);
    }
  });
  return result.of_states();
}

inline std::vector<double> log_sum_exp(const Context& context, const GemmSweep& sweep, double scale) {
  LogSumExp result(context, sweep, scale);
  sweep.run(LogSumExp::tasks(sweep), kPanelColumns,
            [&](int64_t task, const ScoreBlock& block) { result.add_block(task, block); });
  return result.of_states();
}

// The weighting of one row's streams, in double precision.
struct StreamOffsets {
  // log_weights [streams]; Z of stream m is lse[m * lse_step].
  StreamOffsets(const float* log_weights, int64_t streams, const double* lse, int64_t lse_step, double scale)
      : values(streams), scale(scale) {
    for (int64_t m = 0; m < streams; ++m) values[m] = log_weights[m] * kLog2E - lse[m * lse_step];
  }

  // log2 of the mixture's probability of an item with scores d [streams]; NaN where a term is NaN or +infinity.
  double log2_probability(const float* d) const {
    double largest = -std::numeric_limits<double>::infinity();
    for (std::size_t m = 0; m < values.size(); ++m) {
      const double term = values[m] + scale * static_cast<double>(d[m]);
      if (!(term < std::numeric_limits<double>::infinity())) return std::numeric_limits<double>::quiet_NaN();
      largest = std::max(largest, term);
    }
    if (!std::isfinite(largest)) return largest;
    double sum = 0.0;
    for (std::size_t m = 0; m < values.size(); ++m) sum += std::exp2(values[m] + scale * static_cast<double>(d[m]) - largest);
    return largest + std::log2(sum);
  }

  std::vector<double> values;  // o_m
  double scale;
};

// How a kernel computes a stream's term 2^(o + scale · d − c), relative to 2^c, from the distance of its score d to one
// that was chosen near those that count: weight · exp2((d − at) · scale). Of small distances no digit is lost, and those
// that overflow are of terms that decide. With `taken` = 1 the term at `at` is taken away.
struct Anchor {
  float at, weight, taken;

  // At the score that reaches 2^c by itself, up to rounding, which the weight makes up for. NaN where an argument is.
  static Anchor at_total(double offset, double scale, double c) {
    constexpr double largest = std::numeric_limits<float>::max();
    if (offset == -std::numeric_limits<double>::infinity()) return {std::numeric_limits<float>::infinity(), 0.0f, 0.0f};
    constexpr double least_weight = -60.0, most_weight = 20.0;  // of log2
    float at = static_cast<float>(std::clamp((c - offset) / scale, -largest, largest));
    // Where neighbouring scores are further apart than that, the one above 2^c decides: below it is next to nothing.
    if (offset + scale * at - c < least_weight) at = std::nextafter(at, std::numeric_limits<float>::infinity());
    return {at, static_cast<float>(std::exp2(std::min(offset + scale * at - c, most_weight))), 0.0f};
  }

  // At a score whose term is 2^exponent: so terms are compared with this one's.
  static Anchor at_score(float score, double exponent) {
    return {score, static_cast<float>(std::exp2(exponent)), 1.0f};
  }

  // As `mix_streams` reads the anchors of 16 lanes.
  void store(float* anchors, int64_t stream, int64_t lane) const {
    float* target = anchors + stream * kAnchorNumbers * kLanes + lane;
    target[0] = at;
    target[kLanes] = weight;
    target[2 * kLanes] = taken;
  }
};

}  // namespace plr_kernels
