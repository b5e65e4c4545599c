// A chunk of rows of the cross-entropy (score_chunks.h): rows of one state, or of the M states of a mixture
// (mixture_loss.h).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "chunk_softmax.h"
#include "matrix.h"
#include "mixture_loss.h"
#include "operators.h"
#include "score_blocks.h"
#include "states.h"

namespace plr_kernels {

// `streams` states for each row, one after the other; log_weights and their gradient [rows, streams], null where each
// row has one state that weighs 1. What multiplies all gradients is left to Gradients::scale, but for that of the
// weights, which weights_scale multiplies.
struct CrossEntropyRows {
  const Matrix& states;
  const Matrix& items;
  const int64_t* targets;  // per row
  double temperature;
  float* losses;  // CE of every state
  int64_t streams = 1;
  const float* log_weights = nullptr;
  float* weights_gradient = nullptr;
  double weights_scale = 1.0;
  Arithmetic arithmetic = Arithmetic::singles;
};

class CrossEntropyChunk {
 public:
  const States states;

  // Of some rows that count.
  CrossEntropyChunk(const Context& context, const CrossEntropyRows& all, std::vector<int64_t> rows)
      : states(pack_states(context, all.states, states_of(rows, all.streams), kLog2E / all.temperature,
                           all.arithmetic)),
        all_(all),
        rows_(std::move(rows)),
        softmax_(context, all.items.rows, states.order, all.targets, all.streams) {}

  void visit(const ScoreBlock& block) { softmax_.visit(block); }

  void merge(int thread, int64_t number) { softmax_.merge(thread, number); }

  void finish() {
    softmax_.finish();
    std::vector<double> of_row(all_.streams);
    for (int64_t i = 0; i < static_cast<int64_t>(rows_.size()); ++i) {
      const int64_t first = i * all_.streams;
      for (int64_t m = 0; m < all_.streams; ++m) {
        of_row[m] = softmax_.loss(first + m);
        all_.losses[states.order[first + m]] = static_cast<float>(of_row[m]);
      }
      if (all_.log_weights == nullptr) {
        softmax_.set_scale(first, 1.0);
        continue;
      }
      responsibilities(all_.log_weights + rows_[i] * all_.streams, of_row);
      for (int64_t m = 0; m < all_.streams; ++m) {
        softmax_.set_scale(first + m, of_row[m]);
        if (all_.weights_gradient != nullptr) {
          all_.weights_gradient[rows_[i] * all_.streams + m] = static_cast<float>(-of_row[m] * all_.weights_scale);
        }
      }
    }
  }

  void to_gradient(const ScoreBlock& block) const { softmax_.to_gradient(block); }

  void stored(const MutableMatrix&) const {}

 private:
  static Order states_of(const std::vector<int64_t>& rows, int64_t streams) {
    std::vector<int64_t> states;
    for (const int64_t row : rows) {
      for (int64_t m = 0; m < streams; ++m) states.push_back(row * streams + m);
    }
    return listed_order(std::move(states));
  }

  const CrossEntropyRows& all_;
  const std::vector<int64_t> rows_;
  ChunkSoftmax softmax_;
};

}  // namespace plr_kernels
