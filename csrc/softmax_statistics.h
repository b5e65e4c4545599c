// Per state: the largest score m, Σ exp2(s − m) and, for the divergence, Σ exp2(s − m) (s − mean over the group of s).
#pragma once

#include <cstdint>
#include <limits>

#include "buffer.h"
#include "kernels.h"

namespace plr_kernels {

// Kept per chunk of items, and merged in the order of the chunks.
class SoftmaxStatistics {
 public:
  SoftmaxStatistics(int64_t chunks, int64_t states, bool with_deviation)
      : chunks_(chunks),
        states_(states),
        maximum_(chunks * states, -std::numeric_limits<float>::infinity()),
        sum_(chunks * states, 0.0f),
        deviation_(with_deviation ? chunks * states : 0, 0.0f),
        with_deviation_(with_deviation) {}

  float* maximum(int64_t chunk = 0) { return maximum_.data() + chunk * states_; }
  float* sum(int64_t chunk = 0) { return sum_.data() + chunk * states_; }
  float* deviation(int64_t chunk = 0) { return with_deviation_ ? deviation_.data() + chunk * states_ : nullptr; }

  // Afterwards those of chunk 0 are those of all items.
  void merge(const Kernels& kernels) {
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      kernels.merge_softmax(states_, maximum(chunk), sum(chunk), deviation(chunk), maximum(), sum(), deviation());
    }
  }

 private:
  int64_t chunks_;
  int64_t states_;
  Buffer maximum_;
  Buffer sum_;
  Buffer deviation_;
  bool with_deviation_;
};

}  // namespace plr_kernels
