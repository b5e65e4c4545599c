// Both passes over the scores items · statesᵀ [items, states], block by block; nothing of that size is ever kept.
//
// How the work is cut depends on the sizes only, never on the number of threads: neither do the results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "panels.h"
#include "threads.h"
#include "states.h"

namespace plr_kernels {

// A block of scores, in panels with room for `scores_rows` items.
struct ScoreBlock {
  float* scores;
  int64_t scores_rows;
  int64_t first_item;
  int64_t items;
  int64_t first_state;
  int64_t states;
  int thread;

  float& at(int64_t item, int64_t state) const {
    const int64_t column = state - first_state;
    const int64_t row = column / kPanelColumns * scores_rows + (item - first_item);
    return scores[row * kPanelColumns + column % kPanelColumns];
  }
};

// Items per block: as many as leave the items and their gradients in the second-level cache, and fewer where there would
// be little to share among threads.
inline int64_t items_per_block(int64_t items) {
  constexpr int64_t largest = 96, smallest = 24, wanted_blocks = 32;
  return std::clamp(round_up(items / wanted_blocks, 12), smallest, largest);
}

inline int64_t divided_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Consecutive item blocks that one task of the forward pass takes.
struct ItemChunks {
  explicit ItemChunks(int64_t items) : total(items), block(items_per_block(items)) {
    constexpr int64_t most_chunks = 32;
    size = divided_up(divided_up(items, block), most_chunks) * block;
    count = divided_up(items, size);
  }
  int64_t total;
  int64_t block;  // items
  int64_t size;   // items
  int64_t count;
};

// States per block: a multiple of `unit` and of 32, near `wanted`.
inline int64_t states_per_block(int64_t unit, int64_t wanted) {
  const int64_t smallest = unit % kPanelColumns == 0 ? unit : 2 * unit;  // unit is a multiple of 16
  return std::max<int64_t>(1, wanted / smallest) * smallest;
}

// States per block of visit_scores: few enough for the scores to be still in the first-level cache when they are visited.
inline int64_t visited_states(int64_t states_unit) { return states_per_block(states_unit, 2 * kPanelColumns); }

// Calls visit(chunk, block) for every block of scores; one thread sees all blocks of a chunk, in order.
template <class Visit>
void visit_scores(const Kernels& kernels, const States& states, const Matrix& items, int64_t states_unit, Threads& threads,
                  const Visit& visit) {
  const int64_t block_states = visited_states(states_unit);
  const ItemChunks chunks(items.rows);
  const int64_t item_panels = panels_size(chunks.block, states.dim);
  const int64_t scratch_size = item_panels + panels_size(chunks.block, block_states);
  Buffer scratch(scratch_size * threads.count());
  threads.run(chunks.count, [&](int64_t chunk, int thread) {
    float* block_items = scratch.data() + scratch_size * thread;
    float* scores = block_items + item_panels;
    const int64_t end = std::min(chunks.total, (chunk + 1) * chunks.size);
    for (int64_t first = chunk * chunks.size; first < end; first += chunks.block) {
      const int64_t count = std::min(chunks.block, end - first);
      kernels.load_rows(items, first, count, block_items, chunks.block);
      for (int64_t state = 0; state < states.count; state += block_states) {
        const int64_t width = std::min(block_states, states.count - state);
        kernels.product(count, width, states.dim, block_items, chunks.block,
                        states.transposed.data() + state * states.dim, states.dim, scores, chunks.block, false);
        visit(chunk, ScoreBlock{scores, chunks.block, first, count, state, width, thread});
      }
    }
  });
}

// The gradients that are wanted, and what the sums are multiplied by before they are written.
struct Gradients {
  const MutableMatrix* states;  // null where not wanted
  float states_scale;
  const MutableMatrix* items;   // null where not wanted
  float items_scale;
};

// Has to_gradient(block) turn every block of scores into the gradient by them, and writes
//   gradient of items  [items, dim]  = gradient by scores   · states · items_scale
//   gradient of states [states, dim] = gradient by scoresᵀ · items  · states_scale
//
// Item blocks go through in batches. In each, first every thread takes item blocks: scores, their gradient, and the
// items' gradient, which belongs to that thread alone. Then every thread takes states and adds the batch to their
// gradient.
template <class ToGradient>
void backward_through_scores(const Kernels& kernels, const States& states, const Matrix& items, int64_t states_rows,
                             int64_t states_unit, const Gradients& gradients, Threads& threads,
                             const ToGradient& to_gradient) {
  if (states.count == 0) {
    if (gradients.states != nullptr) fill_zero(*gradients.states, states_rows, states.dim);
    if (gradients.items != nullptr) fill_zero(*gradients.items, items.rows, items.columns);
    return;
  }
  constexpr int64_t batch_bytes = int64_t{8} << 20;     // of gradients by scores: stays in the last-level cache
  constexpr int64_t stretch_states = 2048;              // states that go through together
  const int64_t dim_columns = round_up(states.dim, kLanes);
  const int64_t block_items = items_per_block(items.rows);
  const int64_t blocks = divided_up(items.rows, block_items);
  const int64_t block_states = states_per_block(states_unit, kProductDepth);
  const int64_t stretch = std::min(states.count, states_per_block(block_states, stretch_states));

  const int64_t item_panels = panels_size(block_items, states.dim);
  const int64_t score_panels = panels_size(block_items, stretch);
  const int64_t affordable = batch_bytes / (score_panels * static_cast<int64_t>(sizeof(float)));
  const int64_t batch = std::min(blocks, std::max<int64_t>(affordable, 2 * threads.count()));

  Buffer batch_items(batch * item_panels);
  Buffer batch_items_gradient(gradients.items != nullptr ? batch * item_panels : 0);
  Buffer batch_scores(batch * score_panels);
  Buffer states_gradient(gradients.states != nullptr ? panels_size(states.count, states.dim) : 0);
  if (gradients.states != nullptr) {
    std::fill_n(states_gradient.data(), panels_size(states.count, states.dim), 0.0f);
  }

  for (int64_t first_block = 0; first_block < blocks; first_block += batch) {
    const int64_t in_batch = std::min(batch, blocks - first_block);
    const auto items_of = [&](int64_t index) {
      return std::min(block_items, items.rows - (first_block + index) * block_items);
    };
    for (int64_t first_state = 0; first_state < states.count; first_state += stretch) {
      const int64_t last_state = std::min(states.count, first_state + stretch);
      threads.run(in_batch, [&](int64_t index, int thread) {
        const int64_t first_item = (first_block + index) * block_items;
        const int64_t count = items_of(index);
        float* own_items = batch_items.data() + index * item_panels;
        float* own_gradient = batch_items_gradient.data() + index * item_panels;
        if (first_state == 0) kernels.load_rows(items, first_item, count, own_items, block_items);
        for (int64_t state = first_state; state < last_state; state += block_states) {
          const int64_t width = std::min(block_states, last_state - state);
          float* scores = batch_scores.data() + index * score_panels + (state - first_state) * block_items;
          kernels.product(count, width, states.dim, own_items, block_items,
                          states.transposed.data() + state * states.dim, states.dim, scores, block_items, false);
          to_gradient(ScoreBlock{scores, block_items, first_item, count, state, width, thread});
          if (gradients.items == nullptr) continue;
          kernels.product(count, dim_columns, width, scores, block_items, states.rows.data() + state * kPanelColumns,
                          states.count, own_gradient, block_items, state > 0);
        }
        if (gradients.items != nullptr && last_state == states.count) {
          kernels.store_rows(own_gradient, block_items, count, states.dim, gradients.items_scale, *gradients.items,
                             first_item);
        }
      });
      if (gradients.states == nullptr) continue;
      const int64_t panels = (last_state - first_state) / kPanelColumns;
      const int64_t tasks = std::min<int64_t>(panels, 4 * threads.count());
      threads.run(tasks, [&](int64_t task, int) {
        const int64_t first = panels * task / tasks * kPanelColumns;
        const int64_t width = panels * (task + 1) / tasks * kPanelColumns - first;
        for (int64_t index = 0; index < in_batch; ++index) {
          kernels.product_transposed(width, dim_columns, items_of(index),
                                     batch_scores.data() + index * score_panels + first * block_items, block_items,
                                     batch_items.data() + index * item_panels, block_items,
                                     states_gradient.data() + (first_state + first) * kPanelColumns, states.count);
        }
      });
    }
  }
  if (gradients.states != nullptr) {
    unpack_states(kernels, states, states_gradient, states_rows, gradients.states_scale, *gradients.states, threads);
  }
}

}  // namespace plr_kernels
