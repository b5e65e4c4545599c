// Loss and gradients in one pass over chunks of states. A chunk's scores with all items are kept until what the gradient
// needs of each of its states is known, and are then replaced by their gradients: three products, where a forward and a
// backward pass (score_blocks.h, score_gradients.h) take four. The memory is that of one chunk's scores.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"
#include "ordered_sum.h"
#include "panels.h"
#include "score_blocks.h"
#include "score_gradients.h"
#include "states.h"

namespace plr_kernels {

// What is multiplied and where gradients go. The gradients are float32; that w.r.t. the items has contiguous rows.
struct ChunkedPass {
  const Context& context;
  const Matrix& states;
  const Matrix& items;
  int64_t states_unit;    // what a block of states is a multiple of, but for a chunk's last one
  Arithmetic arithmetic;  // of all chunks
  Gradients gradients;
};

// Calls make_chunk(number) for each number in [0, chunks), which returns a std::unique_ptr to an object with
//   states                  a chunk of States, at most `chunk_states`
//   visit(block)            sees a block of scores; must leave them as they are, or as to_gradient expects them
//   merge(thread, number)   after an item block has been visited by that thread, for all states: its number
//   finish()                after the last block
//   to_gradient(block)      replaces a block's scores by the gradients w.r.t. them; after finish()
//   stored(gradient)        the gradient w.r.t. the chunk's states has been written to that matrix, where it is wanted
// and writes gradients as backward_through_scores does; no state may be in two chunks. Where no gradient is wanted,
// to_gradient and stored are not called. One thread visits and merges all item blocks of one of the ItemChunks, in order.
//
// A chunk takes two sweeps over the items, the second of which is the first of the next chunk: an item block is read
// once for both, and the scores of the next chunk take the place of the gradients of this one while they are in the cache.
//
// Threads meet at the end of a sweep and nowhere else: where there are more of them that have work than cores, as beside
// another program, each meeting may cost a turn of the system's scheduler. So what a sweep adds to the gradient w.r.t. the
// states is summed part by part, a part being one of the ItemChunks.
template <class MakeChunk>
void sweep_chunks(const ChunkedPass& pass, int64_t chunks, int64_t chunk_states, const MakeChunk& make_chunk) {
  const Kernels& kernels = pass.context.kernels;
  const Threads& threads = pass.context.threads;
  const Matrix& items = pass.items;
  const MutableMatrix* to_states = pass.gradients.states;
  const MutableMatrix* to_items = pass.gradients.items;
  const bool wanted = to_states != nullptr || to_items != nullptr;  // else the scores are not kept beyond a batch
  if (to_states != nullptr) fill_zero(*to_states, pass.states.rows, pass.states.columns);
  if (chunks == 0) {
    if (to_items != nullptr) fill_zero(*to_items, items.rows, items.columns);
    return;
  }
  const ItemChunks parts(items.rows);
  const int64_t block_items = parts.block;
  const int64_t blocks = divided_up(items.rows, block_items), part_blocks = parts.size / block_items;
  const int64_t block_states = states_per_block(pass.states_unit, kKC);
  const int64_t visited = visited_states(pass.states_unit);
  const int64_t scores_size = panels_size(block_items, chunk_states);
  // Pairs of a block's gradients take the place of its scores.
  const bool in_place = pass.arithmetic != Arithmetic::parts;
  const int64_t by_item_rows = cells_of(pass.arithmetic, block_items);
  const int64_t by_item_size = in_place ? 0 : panels_size(by_item_rows, chunk_states);
  const int64_t item_cells = ScoreProducts::item_cells(pass.arithmetic, block_items, items.columns);
  // A batch of item blocks stays in a thread's second-level cache from one of the steps below to the next.
  constexpr int64_t batch_bytes = int64_t{1} << 20;
  const int64_t block_bytes = (scores_size + by_item_size + item_cells) * int64_t{sizeof(float)};
  const int64_t batch = std::clamp<int64_t>(batch_bytes / block_bytes, std::min<int64_t>(2, part_blocks), part_blocks);
  const float scale = pass.gradients.scale / gradient_scale(pass.arithmetic);
  const int64_t gradient_size = panels_size(block_items, items.columns);
  const int64_t by_state_size =
      multiplies_scores(pass.arithmetic) ? 0 : panels_size(block_items, cells_of(pass.arithmetic, block_states));
  const int64_t kept_scores = wanted ? 0 : scores_size;
  const int64_t scratch_size = gradient_size + by_state_size + batch * (item_cells + by_item_size + kept_scores);

  HugeBuffer workspace(wanted ? blocks * scores_size : 0);
  Buffer scratch(scratch_size * threads.count());
  Buffer states_gradient(to_states != nullptr ? panels_size(chunk_states, items.columns) : 0);

  using Chunk = decltype(make_chunk(int64_t{}));
  Chunk done, next;  // the one whose gradients are made, and the one whose scores are
  for (int64_t number = 0; number < chunks + (wanted ? 1 : 0); ++number) {
    done = std::move(next);
    if (number < chunks) next = make_chunk(number);
    const int64_t width = done ? done->states.count : 0;
    const bool sums_states = done && to_states != nullptr;
    const int64_t states_size = panels_size(width, items.columns);
    if (sums_states) std::fill_n(states_gradient.data(), states_size, 0.0f);
    OrderedSum states_sum(parts.count, states_size, states_gradient.data());

    threads.run(parts.count, [&](int64_t part, int thread) {
      float* items_gradient = scratch.data() + scratch_size * thread;
      float* by_state_cells = items_gradient + gradient_size;
      float* batch_items = by_state_cells + by_state_size;
      float* batch_by_item = batch_items + batch * item_cells;
      float* batch_scores = batch_by_item + batch * by_item_size;
      Buffer part_sum = sums_states ? states_sum.start() : Buffer();
      const int64_t end = std::min(blocks, (part + 1) * part_blocks);
      for (int64_t first_block = part * part_blocks; first_block < end; first_block += batch) {
        const int64_t in_batch = std::min(batch, end - first_block);
        const auto first_of = [&](int64_t index) { return (first_block + index) * block_items; };
        const auto items_of = [&](int64_t index) { return std::min(block_items, items.rows - first_of(index)); };
        const auto cells_of_items = [&](int64_t index) { return batch_items + index * item_cells; };
        const auto scores_of = [&](int64_t index) {
          return wanted ? workspace.data() + (first_block + index) * scores_size : batch_scores + index * scores_size;
        };
        const auto by_item_of = [&](int64_t index) {
          return in_place ? scores_of(index) : batch_by_item + index * by_item_size;
        };

        // Score gradients, gradient w.r.t. the items.
        for (int64_t index = 0; index < in_batch; ++index) {
          const int64_t count = items_of(index);
          ScoreProducts(kernels, done ? done->states : next->states, items)
              .load_items(first_of(index), count, cells_of_items(index), block_items, true);
          if (!done || !wanted) continue;
          const ScoreProducts products(kernels, done->states, items);
          for (int64_t state = 0; state < width; state += block_states) {
            const int64_t block_width = std::min(block_states, width - state);
            float* scores = scores_of(index) + state * block_items;
            const ScoreBlock block{{scores, block_items, count, block_width}, first_of(index), state, thread};
            done->to_gradient(block);
            float* by_state = scores;
            if (!multiplies_scores(pass.arithmetic)) {
              // Where it is in place, what is written of a panel lies before what is still to be read.
              by_state = by_state_cells;
              float* by_item = by_item_of(index) + state * (in_place ? block_items : by_item_rows);
              products.split_scores(block, {by_state, block_items},
                                    {to_states != nullptr ? by_item : nullptr, by_item_rows});
            }
            if (to_items != nullptr) {
              products.items_gradient(count, by_state, block_items, state, block_width, items_gradient);
            }
          }
          if (to_items == nullptr) continue;
          const auto store = number == 1 ? kernels.store_rows : kernels.add_rows;
          store(items_gradient, block_items, count, items.columns, scale, *to_items, first_of(index));
        }

        // What the batch adds to the gradient w.r.t. the states: panel by panel, which stays in the first-level cache.
        for (int64_t state = 0; sums_states && state < width; state += kPanelColumns) {
          const ScoreProducts products(kernels, done->states, items);
          // What is in place is packed by block of states.
          const int64_t first_state = in_place ? state / block_states * block_states : 0;
          for (int64_t index = 0; index < in_batch; ++index) {
            const float* by_item =
                by_item_of(index) + first_state * block_items + (state - first_state) * by_item_rows;
            products.states_gradient(items_of(index), by_item, block_items,
                                     products.second_operand(cells_of_items(index), block_items), kPanelColumns,
                                     part_sum.data() + state * kPanelColumns);
          }
        }

        // Scores of the next chunk.
        for (int64_t index = 0; number < chunks && index < in_batch; ++index) {
          const ScoreProducts products(kernels, next->states, items);
          const int64_t count = items_of(index), states = next->states.count;
          for (int64_t state = 0; state < states; state += visited) {
            const int64_t block_width = std::min(visited, states - state);
            float* scores = scores_of(index) + state * block_items;
            products.scores(count, cells_of_items(index), block_items, state, block_width, scores);
            next->visit(ScoreBlock{{scores, block_items, count, block_width}, first_of(index), state, thread});
          }
          next->merge(thread, first_block + index);
        }
      }
      if (sums_states) states_sum.add(part, std::move(part_sum));
    });

    if (sums_states) {
      store_states_gradient(pass.context, done->states, pass.states, states_gradient, scale, *to_states);
      done->stored(*to_states);
    }
    if (number < chunks) next->finish();
  }
}

}  // namespace plr_kernels
