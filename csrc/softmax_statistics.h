// Per state: the largest score m and Σ exp2(s − m).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "buffer.h"
#include "kernels.h"

namespace plr_kernels {

// Kept per chunk of items, and merged in the order of the chunks.
class SoftmaxStatistics {
 public:
  SoftmaxStatistics(int64_t chunks, int64_t states)
      : chunks_(chunks),
        states_(states),
        maximum_(chunks * states, -std::numeric_limits<float>::infinity()),
        sum_(chunks * states, 0.0f) {}

  float* maximum(int64_t chunk = 0) { return maximum_.data() + chunk * states_; }
  float* sum(int64_t chunk = 0) { return sum_.data() + chunk * states_; }

  // Afterwards those of chunk 0 are those of all items.
  void merge(const Kernels& kernels) {
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      kernels.merge_softmax(states_, maximum(chunk), sum(chunk), maximum(), sum());
    }
  }

 private:
  int64_t chunks_;
  int64_t states_;
  Buffer maximum_;
  Buffer sum_;
};

// A softmax from the statistics of all items but the target.
struct WithTarget {
  double loss;        // −log of the target's probability
  float maximum;      // m over all items
  float inverse_sum;  // 1 / Σ exp2(s − m)
  float others;       // the probability of all items but the target
};

inline WithTarget with_target(double others_maximum, double others_sum, double target_score) {
  const double maximum = std::max(others_maximum, target_score);
  const double others = others_sum * std::exp2(others_maximum - maximum);
  const double sum = others + std::exp2(target_score - maximum);
  // Σ others / target may overflow, the difference of scores does not.
  const double loss = target_score == maximum ? std::log1p(others) : (maximum - target_score) * kLn2 + std::log(sum);
  return {loss, static_cast<float>(maximum), static_cast<float>(1.0 / sum), static_cast<float>(others / sum)};
}

}  // namespace plr_kernels
