// The backward pass through the scores: they are recomputed block by block and replaced by their gradients, from which
// the gradients w.r.t. items and states are summed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"
#include "panels.h"
#include "score_blocks.h"
#include "states.h"

namespace plr_kernels {

// The gradients that are wanted, null where not; `scale` multiplies the sums before they are written.
struct Gradients {
  const MutableMatrix* states;
  const MutableMatrix* items;
  float scale;
};

// States that only fill up the last panel get no gradient and give none: their scores, products of zeros, are NaN for an
// item that is not finite. For states in a `listed_order`.
inline void clear_padding(const Order& order, const ScoreBlock& block) {
  for (int64_t state = block.first_state + block.states - 1; state >= block.first_state; --state) {
    if (order[state] >= 0) return;
    for (int64_t item = block.first_item; item < block.first_item + block.items; ++item) block.at(item, state) = 0.0f;
  }
}

// to_gradient(block) replaces each block of scores by the gradient w.r.t. the scores. Writes
//   gradient w.r.t. items  [items, dim]  = score gradients  [items, states] · states · scale
//   gradient w.r.t. states [states, dim] = score gradientsᵀ [states, items] · items  · scale
//
// Item blocks go through in batches. In each, first every thread takes item blocks: scores, their gradients, and the
// gradient w.r.t. these items, which belongs to that thread alone. Then every thread takes states and adds the batch to
// the gradient w.r.t. them.
template <class ToGradient>
void backward_through_scores(const Context& context, const States& states, const Matrix& states_matrix,
                             const Matrix& items, int64_t states_unit, const Gradients& gradients,
                             const ToGradient& to_gradient) {
  const Kernels& kernels = context.kernels;
  const Threads& threads = context.threads;
  if (gradients.states != nullptr) fill_zero(*gradients.states, states_matrix.rows, states.dim);
  if (states.count == 0) {
    if (gradients.items != nullptr) fill_zero(*gradients.items, items.rows, items.columns);
    return;
  }
  // Of score gradients: they stay in the last-level cache.
  const int64_t batch_bytes = (int64_t{8} << 20) / threads.side_by_side();
  constexpr int64_t stretch_states = 2048;  // states that go through together
  const ScoreProducts products(kernels, states, items);
  const float scale = gradients.scale / gradient_scale(states.arithmetic);
  const int64_t block_items = items_per_block(items.rows);
  const int64_t blocks = divided_up(items.rows, block_items);
  const int64_t block_states = states_per_block(states_unit, kKC);
  const int64_t stretch = std::min(states.count, states_per_block(block_states, stretch_states));

  const int64_t item_cells = products.item_cells(block_items);
  const int64_t gradient_size = panels_size(block_items, states.dim);
  const int64_t item_rows = states.cells(block_items);  // of a block's score gradients, as cells along the items
  const int64_t scores_size = panels_size(item_rows, stretch);
  const int64_t affordable = batch_bytes / (scores_size * static_cast<int64_t>(sizeof(float)));
  const int64_t batch = std::min(blocks, std::max<int64_t>(affordable, 2 * threads.count()));

  Buffer batch_items(batch * item_cells);
  Buffer batch_items_gradient(gradients.items != nullptr ? batch * gradient_size : 0);
  Buffer batch_scores(batch * scores_size);  // score gradients as cells along the items
  // Where these are not multiplied as they lie there: a thread's scores, and their gradients as cells along the states.
  const int64_t scratch_scores = panels_size(block_items, block_states);
  const int64_t scratch_size =
      multiplies_scores(states.arithmetic) ? 0 : scratch_scores + panels_size(block_items, states.cells(block_states));
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

      // By item blocks: scores, score gradients, gradient w.r.t. the items.
      threads.run(in_batch, [&](int64_t index, int thread) {
        const int64_t first_item = (first_block + index) * block_items;
        const int64_t count = items_of(index);
        float* cells = batch_items.data() + index * item_cells;
        float* items_gradient = batch_items_gradient.data() + index * gradient_size;
        float* thread_scratch = scratch.data() + scratch_size * thread;
        if (first_state == 0) products.load_items(first_item, count, cells, block_items, true);
        for (int64_t state = first_state; state < last_state; state += block_states) {
          const int64_t width = std::min(block_states, last_state - state);
          float* by_item = batch_scores.data() + index * scores_size + (state - first_state) * item_rows;
          float* scores = multiplies_scores(states.arithmetic) ? by_item : thread_scratch;
          products.scores(count, cells, block_items, state, width, scores);
          const ScoreBlock block{{scores, block_items, count, width}, first_item, state, thread};
          to_gradient(block);
          float* by_state = scores;
          if (!multiplies_scores(states.arithmetic)) {
            by_state = thread_scratch + scratch_scores;
            products.split_scores(block, {by_state, block_items},
                                  {gradients.states != nullptr ? by_item : nullptr, item_rows});
          }
          if (gradients.items == nullptr) continue;
          products.items_gradient(count, by_state, block_items, state, width, items_gradient);
        }
        if (gradients.items != nullptr && last_state == states.count) {
          store_gradient(kernels, items, first_item, count, items_gradient, block_items, scale,
                         *gradients.items);
        }
      });
      if (gradients.states == nullptr) continue;

      // By states: what the batch adds to the gradient w.r.t. them.
      const int64_t panels = (last_state - first_state) / kPanelColumns;
      const int64_t tasks = std::min<int64_t>(panels, 4 * threads.count());
      threads.run(tasks, [&](int64_t task, int) {
        const int64_t first = panels * task / tasks * kPanelColumns;
        const int64_t width = panels * (task + 1) / tasks * kPanelColumns - first;
        for (int64_t index = 0; index < in_batch; ++index) {
          float* cells = batch_items.data() + index * item_cells;
          products.states_gradient(items_of(index), batch_scores.data() + index * scores_size + first * item_rows,
                                   block_items, products.second_operand(cells, block_items), width,
                                   states_gradient.data() + (first_state + first) * kPanelColumns);
        }
      });
    }
  }
  if (gradients.states != nullptr) {
    store_states_gradient(context, states, states_matrix, states_gradient, scale, *gradients.states);
  }
}

}  // namespace plr_kernels
