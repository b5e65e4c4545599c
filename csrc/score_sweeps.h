// Sweeps over the items for operators that rank: every block of scores once, raw dot products in float32.
//
// A score depends on its item, its state and which sweep computes it, never on where the two stand: items with equal
// vectors have equal scores, and one item's scores by themselves (`of_item`) are those of its block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"
#include "panels.h"
#include "score_blocks.h"
#include "states.h"

namespace plr_kernels {

// For few states: the time is that of reading the items once from where they are.
class GemvSweep {
 public:
  // For rows of `streams` states each. GemmSweep computes 16 rows at a time, where each has several states, and so takes
  // as long as this for fewer of them.
  static bool suits(const Matrix& states, int64_t streams) {
    constexpr int64_t few_rows = 8, few_rows_of_streams = 5, most_states = 32;
    return states.rows <= std::min(most_states, streams * (streams == 1 ? few_rows : few_rows_of_streams)) &&
           states.columns >= kLanes;
  }

  GemvSweep(const Context& context, const Matrix& states, const Matrix& items)
      : context_(context),
        items_(items),
        states_(states.rows),
        vectors_step_(panels_size(1, states.columns)),
        vectors_(states.rows * vectors_step_) {
    constexpr int64_t block_bytes = 1 << 17;  // of items: enough that what is done per block takes no time
    constexpr int64_t task_bytes = 1 << 19;
    const int64_t item_bytes = items.columns * bytes_of(items.type);
    block_ = std::clamp<int64_t>(block_bytes / item_bytes / kLanes * kLanes, kLanes, 1024);
    task_size_ = divided_up(task_bytes, block_ * item_bytes) * block_;
    for (int64_t state = 0; state < states_; ++state) {
      context.kernels.load_rows(states, state, 1, vectors_.data() + state * vectors_step_, 1);
    }
  }

  int64_t states() const { return states_; }
  int64_t block_items() const { return block_; }  // a multiple of 16
  int64_t tasks() const { return divided_up(items_.rows, task_size_); }
  // Whether a block is the last of its task.
  bool ends_task(int64_t task, int64_t first_item, int64_t count) const {
    return first_item + count == std::min(items_.rows, (task + 1) * task_size_);
  }

  // Calls visit(task, thread, first_item, count, scores) for every block, scores [states, block_items] of which the
  // visitor may overwrite any; one thread sees all blocks of a task, in order.
  template <class Visit>
  void run(const Visit& visit) const {
    Buffer scratch(states_ * block_ * context_.threads.count());
    context_.threads.run(tasks(), [&](int64_t task, int thread) {
      float* scores = scratch.data() + states_ * block_ * thread;
      const int64_t end = std::min(items_.rows, (task + 1) * task_size_);
      for (int64_t first = task * task_size_; first < end; first += block_) {
        const int64_t count = std::min(block_, end - first);
        context_.kernels.gemv(items_, first, count, vectors_.data(), vectors_step_, states_, scores, block_);
        visit(task, thread, first, count, scores);
      }
    });
  }

  // The scores of one item and states [first, first + count).
  void of_item(int64_t item, int64_t first, int64_t count, float* scores) const {
    if (count == 1 && states_ > 1) {  // among several vectors as in `run`
      float pair[2];
      const int64_t start = std::min(first, states_ - 2);
      context_.kernels.gemv(items_, item, 1, vectors_.data() + start * vectors_step_, vectors_step_, 2, pair, 1);
      scores[0] = pair[first - start];
      return;
    }
    context_.kernels.gemv(items_, item, 1, vectors_.data() + first * vectors_step_, vectors_step_, count, scores, 1);
  }

  // The scores [ids, count] of listed items and states [first, first + count).
  void of_items(const std::vector<int64_t>& ids, int64_t first, int64_t count, float* scores) const {
    for (const int64_t id : ids) {
      of_item(id, first, count, scores);
      scores += count;
    }
  }

 private:
  const Context& context_;
  const Matrix& items_;
  int64_t states_;
  int64_t vectors_step_;
  Buffer vectors_;
  int64_t block_;
  int64_t task_size_;  // items
};

// For many: register-blocked products of blocks of items, as they lie in memory where that can be, with packed states.
class GemmSweep {
 public:
  // The packed states `order` of the matrix (states.h).
  GemmSweep(const Context& context, const Matrix& states, Order order, const Matrix& items, bool paired)
      : context_(context),
        items_(items),
        states_(pack_states(context, states, std::move(order), 1.0, pairs_or_singles(paired))),
        used_(used_columns(states_.order)),
        block_(items_per_block(items.rows)),
        in_place_(paired ? lies_in_pairs(items) : items.type == DataType::float32),
        row_size_(paired ? states_.depth : panels_size(1, states_.dim)) {}

  // Whether to round to bfloat16; rounding the items takes longer than it saves for few rows.
  static bool takes_pairs(const Context& context, const Matrix& states, const Matrix& items) {
    constexpr int64_t least_rounded_rows = 17;
    return plr_kernels::takes_pairs(context, states, items) &&
           (items.type == DataType::bfloat16 || states.rows >= least_rounded_rows);
  }

  const Order& order() const { return states_.order; }
  int64_t states() const { return used_; }  // a multiple of 16: up to the last that is a row
  int64_t block_items() const { return block_; }
  int64_t blocks() const { return divided_up(items_.rows, block_); }

  // Calls visit(task, block) for every block of scores, `together` states (a multiple of 32) but for the last ones, of
  // which the visitor may overwrite any; one thread sees all blocks of a task, in order.
  template <class Visit>
  void run(int64_t tasks, int64_t together, const Visit& visit) const {
    const auto gemm = paired() ? context_.kernels.pairs.gemm_unpacked : context_.kernels.gemm_unpacked;
    const int64_t copied_size = in_place_ ? 0 : block_ * row_size_;
    const int64_t scores_size = panels_size(block_, together);
    const int64_t panels = divided_up(used_, kPanelColumns);
    Buffer scratch((copied_size + scores_size) * context_.threads.count());
    context_.threads.run(tasks, [&](int64_t task, int thread) {
      float* copied = scratch.data() + (copied_size + scores_size) * thread;
      float* scores = copied + copied_size;
      const int64_t end = std::min(items_.rows, blocks() * (task + 1) / tasks * block_);
      for (int64_t first_item = blocks() * task / tasks * block_; first_item < end; first_item += block_) {
        const int64_t count = std::min(block_, end - first_item);
        const int64_t next_count = std::min(block_, end - first_item - count);
        const Matrix block = first_operand(first_item, count, copied);
        for (int64_t first = 0; first < used_; first += together) {
          const int64_t width = std::min(together, used_ - first);
          for (int64_t state = first; state < first + width; state += kPanelColumns) {
            // While the panels are computed, the next block of items comes from memory.
            const int64_t panel = state / kPanelColumns;
            const int64_t fetch_from = next_count * panel / panels, fetch_to = next_count * (panel + 1) / panels;
            gemm(block, std::min(kPanelColumns, used_ - state), states_.transposed.data() + state * states_.depth,
                 scores + (state - first) * block_, items_, first_item + count + fetch_from, fetch_to - fetch_from);
          }
          visit(task, ScoreBlock{{scores, block_, count, width}, first_item, first, thread});
        }
      }
    });
  }

  // The scores of one item and the 32 states from `first_state`, a multiple of 32; copied has room for an item.
  void of_item(int64_t item, int64_t first_state, float* copied, float* scores) const {
    const auto gemm = paired() ? context_.kernels.pairs.gemm_unpacked : context_.kernels.gemm_unpacked;
    gemm(first_operand(item, 1, copied), kPanelColumns, states_.transposed.data() + first_state * states_.depth, scores,
         items_, item, 0);
  }
  int64_t copied_item() const { return row_size_; }

 private:
  bool paired() const { return states_.arithmetic == Arithmetic::pairs; }

  static int64_t used_columns(const Order& order) {
    const auto last = std::find_if(order.rbegin(), order.rend(), [](int64_t row) { return row >= 0; });
    return round_up(order.rend() - last, kLanes);
  }

  // Whether every row of a matrix consists of whole pairs of bfloat16, aligned as pairs.
  static bool lies_in_pairs(const Matrix& items) {
    constexpr std::uintptr_t pair_bytes = 4;
    return items.type == DataType::bfloat16 && items.columns % 2 == 0 && items.stride % 2 == 0 &&
           reinterpret_cast<std::uintptr_t>(items.data) % pair_bytes == 0;
  }

  // Items as the product reads them: as they lie in memory, or else copied.
  Matrix first_operand(int64_t first_item, int64_t count, float* copied) const {
    if (in_place_) {
      return {row_of(items_, first_item), DataType::float32, count, states_.depth, items_.stride / (paired() ? 2 : 1)};
    }
    for (int64_t i = 0; i < count; ++i) {
      float* row = copied + i * row_size_;
      if (paired()) {
        row[row_size_ - 1] = 0.0f;  // the last pair of an odd number of columns has only one
        context_.kernels.pairs.round_row(items_, first_item + i, reinterpret_cast<uint16_t*>(row));
      } else {
        context_.kernels.load_rows(items_, first_item + i, 1, row, 1);
      }
    }
    return {copied, DataType::float32, count, states_.depth, row_size_};
  }

  const Context& context_;
  const Matrix& items_;
  States states_;
  int64_t used_;
  int64_t block_;
  bool in_place_;
  int64_t row_size_;
};

}  // namespace plr_kernels
