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

// Products of the arithmetic that the states are packed for, and the items packed for them.
class Products {
 public:
  Products(const Kernels& kernels, const States& states, const Matrix& items)
      : kernels_(kernels), states_(states), items_(items) {}

  // Cells of a block's items: as first operand of the scores, and as second operand of the states' gradient.
  int64_t item_cells(int64_t block_items) const {
    return panels_size(block_items, states_.depth) + (states_.paired ? panels_size(block_items / 2, states_.dim) : 0);
  }
  float* second_operand(float* cells, int64_t block_items) const {
    return states_.paired ? cells + panels_size(block_items, states_.depth) : cells;
  }

  void load_items(int64_t first, int64_t count, float* cells, int64_t block_items, bool for_gradient) const {
    if (!states_.paired) {
      kernels_.load_rows(items_, first, count, cells, block_items);
      return;
    }
    Bfloat16Rows rows(kernels_, items_, 2);
    float* second = second_operand(cells, block_items);
    for (int64_t i = 0; i < count; i += 2) {
      const uint16_t* row = rows.row(first + i);
      const uint16_t* next_row = i + 1 < count ? rows.row(first + i + 1) : nullptr;
      kernels_.pairs.pair_columns(row, states_.dim, i, cells, block_items);
      if (next_row != nullptr) kernels_.pairs.pair_columns(next_row, states_.dim, i + 1, cells, block_items);
      if (for_gradient) kernels_.pairs.pair_rows(row, next_row, states_.dim, i / 2, second, block_items / 2);
    }
  }

  void scores(int64_t count, const float* item_cells, int64_t block_items, int64_t state, int64_t width,
              float* scores) const {
    const auto product = states_.paired ? kernels_.pairs.product : kernels_.product;
    product(count, width, states_.depth, item_cells, block_items, states_.transposed.data() + state * states_.depth,
            states_.depth, scores, block_items, states_.scale, false);
  }

  // From the gradient by scores [items, states], its cells along the states.
  void items_gradient(int64_t count, const float* by_state, int64_t block_items, int64_t state, int64_t width,
                      float* gradient) const {
    const int64_t each = states_.per_cell();
    const auto product = states_.paired ? kernels_.pairs.product : kernels_.product;
    product(count, round_up(states_.dim, kLanes), width / each, by_state, block_items,
            states_.rows.data() + state / each * kPanelColumns, states_.count / each, gradient, block_items, 1.0f,
            state > 0);
  }

  // From the same, its cells along the items; `second` from second_operand.
  void states_gradient(int64_t count, const float* by_item, int64_t block_items, const float* second, int64_t width,
                       float* gradient) const {
    const int64_t each = states_.per_cell();
    const auto product = states_.paired ? kernels_.pairs.product_transposed : kernels_.product_transposed;
    product(width, round_up(states_.dim, kLanes), divided_up(count, each), by_item, block_items / each, second,
            block_items / each, gradient, states_.count);
  }

 private:
  const Kernels& kernels_;
  const States& states_;
  const Matrix& items_;
};

// Calls visit(chunk, block) for every block of scores; one thread sees all blocks of a chunk, in order.
template <class Visit>
void visit_scores(const Kernels& kernels, const States& states, const Matrix& items, int64_t states_unit, Threads& threads,
                  const Visit& visit) {
  const int64_t block_states = visited_states(states_unit);
  const ItemChunks chunks(items.rows);
  const Products products(kernels, states, items);
  const int64_t item_panels = products.item_cells(chunks.block);
  const int64_t scratch_size = item_panels + panels_size(chunks.block, block_states);
  Buffer scratch(scratch_size * threads.count());
  threads.run(chunks.count, [&](int64_t chunk, int thread) {
    float* block_items = scratch.data() + scratch_size * thread;
    float* scores = block_items + item_panels;
    const int64_t end = std::min(chunks.total, (chunk + 1) * chunks.size);
    for (int64_t first = chunk * chunks.size; first < end; first += chunks.block) {
      const int64_t count = std::min(chunks.block, end - first);
      products.load_items(first, count, block_items, chunks.block, false);
      for (int64_t state = 0; state < states.count; state += block_states) {
        const int64_t width = std::min(block_states, states.count - state);
        products.scores(count, block_items, chunks.block, state, width, scores);
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
void backward_through_scores(const Kernels& kernels, const States& states, const Matrix& states_matrix,
                             const Matrix& items, int64_t states_unit, const Gradients& gradients, Threads& threads,
                             const ToGradient& to_gradient) {
  if (states.count == 0) {
    if (gradients.states != nullptr) fill_zero(*gradients.states, states_matrix.rows, states.dim);
    if (gradients.items != nullptr) fill_zero(*gradients.items, items.rows, items.columns);
    return;
  }
  // Of gradients by scores: they stay in the last-level cache.
  const int64_t batch_bytes = (int64_t{8} << 20) / threads.side_by_side();
  constexpr int64_t stretch_states = 2048;              // states that go through together
  const Products products(kernels, states, items);
  const int64_t block_items = items_per_block(items.rows);
  const int64_t blocks = divided_up(items.rows, block_items);
  const int64_t block_states = states_per_block(states_unit, kProductDepth);
  const int64_t stretch = std::min(states.count, states_per_block(block_states, stretch_states));

  const int64_t item_cells = products.item_cells(block_items);
  const int64_t gradient_panels = panels_size(block_items, states.dim);
  const int64_t score_panels = panels_size(block_items / states.per_cell(), stretch);
  const int64_t affordable = batch_bytes / (score_panels * static_cast<int64_t>(sizeof(float)));
  const int64_t batch = std::min(blocks, std::max<int64_t>(affordable, 2 * threads.count()));

  Buffer batch_items(batch * item_cells);
  Buffer batch_items_gradient(gradients.items != nullptr ? batch * gradient_panels : 0);
  Buffer batch_scores(batch * score_panels);
  // Where products take pairs: a thread's scores, and their gradient's cells along the states.
  const int64_t scratch_scores = panels_size(block_items, block_states);
  const int64_t scratch_size = states.paired ? scratch_scores + panels_size(block_items, block_states / 2) : 0;
  Buffer scratch(scratch_size * threads.count());
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
        float* own_items = batch_items.data() + index * item_cells;
        float* own_gradient = batch_items_gradient.data() + index * gradient_panels;
        float* own_scratch = scratch.data() + scratch_size * thread;
        if (first_state == 0) products.load_items(first_item, count, own_items, block_items, true);
        for (int64_t state = first_state; state < last_state; state += block_states) {
          const int64_t width = std::min(block_states, last_state - state);
          float* by_item =
              batch_scores.data() + index * score_panels + (state - first_state) * (block_items / states.per_cell());
          float* scores = states.paired ? own_scratch : by_item;
          products.scores(count, own_items, block_items, state, width, scores);
          to_gradient(ScoreBlock{scores, block_items, first_item, count, state, width, thread});
          float* by_state = scores;
          if (states.paired) {
            by_state = own_scratch + scratch_scores;
            kernels.pairs.pair_scores(scores, block_items, count, width, by_state, block_items,
                                      gradients.states != nullptr ? by_item : nullptr, block_items / 2);
          }
          if (gradients.items == nullptr) continue;
          products.items_gradient(count, by_state, block_items, state, width, own_gradient);
        }
        if (gradients.items != nullptr && last_state == states.count) {
          store_gradient(kernels, items, first_item, count, own_gradient, block_items, gradients.items_scale,
                         *gradients.items);
        }
      });
      if (gradients.states == nullptr) continue;
      const int64_t panels = (last_state - first_state) / kPanelColumns;
      const int64_t tasks = std::min<int64_t>(panels, 4 * threads.count());
      threads.run(tasks, [&](int64_t task, int) {
        const int64_t first = panels * task / tasks * kPanelColumns;
        const int64_t width = panels * (task + 1) / tasks * kPanelColumns - first;
        for (int64_t index = 0; index < in_batch; ++index) {
          float* own_items = batch_items.data() + index * item_cells;
          products.states_gradient(
              items_of(index), batch_scores.data() + index * score_panels + first * (block_items / states.per_cell()),
              block_items, products.second_operand(own_items, block_items), width,
              states_gradient.data() + (first_state + first) * kPanelColumns);
        }
      });
    }
  }
  if (gradients.states != nullptr) {
    store_states_gradient(kernels, states, states_matrix, states_gradient, gradients.states_scale, *gradients.states,
                          threads);
  }
}

}  // namespace plr_kernels
