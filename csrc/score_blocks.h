// Scores items · statesᵀ [items, states], block by block; nothing of that size is ever kept. Here the forward pass; the
// backward pass is in score_gradients.h.
//
// How the work is cut depends on the sizes only, never on the number of threads: neither do the results.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"
#include "panels.h"
#include "states.h"

namespace plr_kernels {

// ------------------------------------------------------------------------------------------ blocks

struct ScoreBlock : Scores {
  int64_t first_item;
  int64_t first_state;
  int thread;

  float& at(int64_t item, int64_t state) const {
    const int64_t column = state - first_state;
    const int64_t row = column / kPanelColumns * rows + (item - first_item);
    return data[row * kPanelColumns + column % kPanelColumns];
  }
};

inline int64_t divided_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Items per block: as many as leave the items and their gradients in the second-level cache, and fewer where there
// would be little to share among threads.
inline int64_t items_per_block(int64_t items) {
  constexpr int64_t largest = 96, smallest = 24, wanted_blocks = 32;
  return std::clamp(round_up(items / wanted_blocks, 12), smallest, largest);
}

// Consecutive item blocks that one task of a sweep over the items takes.
struct ItemChunks {
  explicit ItemChunks(int64_t items) : total(items), block(items_per_block(items)) {
    // Enough for many threads to share, but none so small that what is added up chunk by chunk takes time.
    constexpr int64_t fair_chunks = 32, fair_blocks = 4, most_chunks = 128;
    const int64_t blocks = divided_up(items, block);
    size = std::max(std::min(divided_up(blocks, fair_chunks), fair_blocks), divided_up(blocks, most_chunks)) * block;
    count = divided_up(items, size);
  }
  // The chunk of the item block with this number.
  int64_t of_block(int64_t number) const { return number * block / size; }
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

// States per block of visit_scores: few enough for the scores to be still in the first-level cache when they are
// visited.
inline int64_t visited_states(int64_t states_unit) { return states_per_block(states_unit, 2 * kPanelColumns); }

// ------------------------------------------------------------------------------------------ products

// The three products of a block in the arithmetic that the states are packed for, and the items packed for them.
class ScoreProducts {
 public:
  ScoreProducts(const Kernels& kernels, const States& states, const Matrix& items)
      : kernels_(kernels), states_(states), items_(items) {}

  // Cells of a block's items: as first operand of the scores, and as second operand of the gradient w.r.t. the states.
  static int64_t item_cells(Arithmetic arithmetic, int64_t block_items, int64_t dim) {
    const int64_t first = panels_size(block_items, cells_of(arithmetic, dim));
    return multiplies_scores(arithmetic) ? first : first + panels_size(cells_of(arithmetic, block_items), dim);
  }
  int64_t item_cells(int64_t block_items) const { return item_cells(states_.arithmetic, block_items, states_.dim); }
  float* second_operand(float* cells, int64_t block_items) const {
    return multiplies_scores(states_.arithmetic) ? cells : cells + panels_size(block_items, states_.depth);
  }

  void load_items(int64_t first, int64_t count, float* cells, int64_t block_items, bool for_gradient) const {
    float* second = for_gradient ? second_operand(cells, block_items) : nullptr;
    switch (states_.arithmetic) {
      case Arithmetic::singles:
        return kernels_.load_rows(items_, first, count, cells, block_items);
      case Arithmetic::pairs:
        return load_pairs(first, count, cells, second, block_items);
      case Arithmetic::parts:
        return load_parts(first, count, cells, second, block_items);
    }
  }

  // scores [count, width] = items [count, dim] · statesᵀ [dim, width], states from `state` on.
  void scores(int64_t count, const float* item_cells, int64_t block_items, int64_t state, int64_t width,
              float* scores) const {
    gemm()(count, width, states_.depth, {item_cells, block_items},
           {states_.transposed.data() + state * states_.depth, states_.depth}, states_.scale, false,
           {scores, block_items});
  }

  // The gradients w.r.t. a block's scores as cells along the states, [items, cells of states], and, where not null, as
  // cells along the items; only where those are not multiplied as they lie there.
  void split_scores(const ScoreBlock& block, MutablePanels by_state, MutablePanels by_item) const {
    if (states_.arithmetic == Arithmetic::pairs) {
      kernels_.pairs.pair_scores(block, by_state, by_item);
    } else {
      kernels_.parts.split_scores(block, by_state, by_item);
    }
  }

  // gradient [count, dim] += score gradients [count, width] · states [width, dim]; the first states set it. The score
  // gradients are cells along the states.
  void items_gradient(int64_t count, const float* by_state, int64_t block_items, int64_t state, int64_t width,
                      float* gradient) const {
    gemm()(count, round_up(states_.dim, kLanes), states_.cells(width), {by_state, block_items},
           {states_.rows.data() + states_.cells(state) * kPanelColumns, states_.cells(states_.count)}, 1.0f, state > 0,
           {gradient, block_items});
  }

  // gradient [width, dim] += score gradientsᵀ [width, count] · items [count, dim]. The score gradients are cells along
  // the items; `second` from second_operand.
  void states_gradient(int64_t count, const float* by_item, int64_t block_items, const float* second, int64_t width,
                       float* gradient) const {
    const int64_t rows = states_.cells(block_items);
    gemm_transposed()(width, round_up(states_.dim, kLanes), states_.cells(count), {by_item, rows}, {second, rows},
                      {gradient, states_.count});
  }

 private:
  auto gemm() const -> decltype(Kernels::gemm) {
    switch (states_.arithmetic) {
      case Arithmetic::singles:
        return kernels_.gemm;
      case Arithmetic::pairs:
        return kernels_.pairs.gemm;
      default:
        return kernels_.parts.gemm;
    }
  }
  auto gemm_transposed() const -> decltype(Kernels::gemm_transposed) {
    switch (states_.arithmetic) {
      case Arithmetic::singles:
        return kernels_.gemm_transposed;
      case Arithmetic::pairs:
        return kernels_.pairs.gemm_transposed;
      default:
        return kernels_.parts.gemm_transposed;
    }
  }

  void load_pairs(int64_t first, int64_t count, float* cells, float* second, int64_t block_items) const {
    Bfloat16Rows rows(kernels_, items_, 2);
    for (int64_t i = 0; i < count; i += 2) {
      const uint16_t* row = rows.row(first + i);
      const uint16_t* next_row = i + 1 < count ? rows.row(first + i + 1) : nullptr;
      kernels_.pairs.pair_columns(row, states_.dim, i, cells, block_items);
      if (next_row != nullptr) kernels_.pairs.pair_columns(next_row, states_.dim, i + 1, cells, block_items);
      if (second == nullptr) continue;
      kernels_.pairs.pair_rows(row, next_row, states_.dim, i / 2, second, states_.cells(block_items));
    }
  }

  void load_parts(int64_t first, int64_t count, float* cells, float* second, int64_t block_items) const {
    Float32Rows rows(kernels_, items_, 2);
    // Cells along the items are filled up with zeros.
    const int64_t end = second == nullptr ? count : round_up(count, kPanelColumns);
    for (int64_t i = 0; i < end; i += 2) {
      const float* row = i < count ? rows.row(first + i) : nullptr;
      const float* next_row = i + 1 < count ? rows.row(first + i + 1) : nullptr;
      kernels_.parts.split_rows(row, next_row, states_.dim, i, {cells, block_items},
                                {second, states_.cells(block_items)});
    }
  }

  const Kernels& kernels_;
  const States& states_;
  const Matrix& items_;
};

// ------------------------------------------------------------------------------------------ the forward pass

// One sweep over the items: calls visit(chunk, block) for every block of scores; one thread sees all blocks of a chunk,
// in order. A block's states are a multiple of `states_unit`, but for the last ones.
template <class Visit>
void visit_scores(const Context& context, const States& states, const Matrix& items, int64_t states_unit,
                  const Visit& visit) {
  const int64_t block_states = visited_states(states_unit);
  const ItemChunks chunks(items.rows);
  const ScoreProducts products(context.kernels, states, items);
  const int64_t item_cells = products.item_cells(chunks.block);
  const int64_t scratch_size = item_cells + panels_size(chunks.block, block_states);
  Buffer scratch(scratch_size * context.threads.count());
  context.threads.run(chunks.count, [&](int64_t chunk, int thread) {
    float* block_items = scratch.data() + scratch_size * thread;
    float* scores = block_items + item_cells;
    const int64_t end = std::min(chunks.total, (chunk + 1) * chunks.size);
    for (int64_t first = chunk * chunks.size; first < end; first += chunks.block) {
      const int64_t count = std::min(chunks.block, end - first);
      products.load_items(first, count, block_items, chunks.block, false);
      for (int64_t state = 0; state < states.count; state += block_states) {
        const int64_t width = std::min(block_states, states.count - state);
        products.scores(count, block_items, chunks.block, state, width, scores);
        visit(chunk, ScoreBlock{{scores, chunks.block, count, width}, first, state, thread});
      }
    }
  });
}

}  // namespace plr_kernels
