// Items packed once as products read them, for ranking by one arithmetic whatever the number of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "buffer.h"
#include "exclusions.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"
#include "panels.h"
#include "quantized_items.h"
#include "score_blocks.h"

namespace plr_kernels {

// Panels of the transpose of float32 items [V, D]: [V / 32][D][32], zeros behind the last item. Where asked for and of
// use, as 8-bit integers, too.
class PackedItems {
 public:
  PackedItems(const Kernels& kernels, const Matrix& items, bool quantize = false)
      : matrix_(items), panels_(panels_size(items.columns, items.rows)) {
    if (quantize && kernels.quantized_bounds != nullptr && QuantizedItems::takes(items.columns)) {
      quantized_.emplace(items.rows, items.columns);
    }
    Buffer rows(panels_size(kPanelColumns, items.columns));
    for (int64_t first = 0; first < items.rows; first += kPanelColumns) {
      const int64_t count = std::min(kPanelColumns, items.rows - first);
      kernels.load_rows(items, first, count, rows.data(), kPanelColumns);
      float* panel = panels_.data() + first * items.columns;
      for (int64_t d = 0; d < items.columns; ++d) {
        const float* column = rows.data() + d / kPanelColumns * kPanelColumns * kPanelColumns + d % kPanelColumns;
        for (int64_t i = 0; i < kPanelColumns; ++i) {
          panel[d * kPanelColumns + i] = i < count ? column[i * kPanelColumns] : 0.0f;
        }
      }
      if (quantized_) quantized_->put(first, count, rows.data());
    }
    constexpr int64_t most_unbounded = 64;  // one in so many is scored at each call
    if (quantized_ && quantized_->unbounded() * most_unbounded > items.rows) quantized_.reset();
  }

  // As they were given.
  const Matrix& matrix() const { return matrix_; }
  // 32 items from `first` on, a multiple of 32.
  Panels panel(int64_t first) const { return {panels_.data() + first * matrix_.columns, matrix_.columns}; }
  // Null where there are none.
  const QuantizedItems* quantized() const { return quantized_ ? &*quantized_ : nullptr; }
  // For how many states at once they find the k best faster.
  int64_t quantized_states(const Kernels& kernels, int64_t k) const {
    return quantized_ ? kernels.most_quantized_states(matrix_.rows * matrix_.columns, k) : 0;
  }

 private:
  Matrix matrix_;
  Buffer panels_;
  std::optional<QuantizedItems> quantized_;
};

// A sweep as GemvSweep's, with scores by `gemm`: each the sum of its products one after the other, in every tile. So a
// score depends on its item and its state alone.
class PackedSweep {
 public:
  static constexpr int64_t kMostStates = 256;  // whose scores of a block stay in the second-level cache

  PackedSweep(const Context& context, const Matrix& states, const PackedItems& items)
      : context_(context), items_(items), states_(states.rows), packed_(panels_size(states.rows, states.columns)) {
    constexpr int64_t block_bytes = 1 << 16, task_bytes = 1 << 19;
    const int64_t item_bytes = states.columns * bytes_of(DataType::float32);
    // An odd number of panels: the scores of different states, that many apart, do not share sets of a cache.
    const int64_t panels = std::clamp<int64_t>(block_bytes / item_bytes / kPanelColumns, 1, 32);
    block_ = (panels / 2 * 2 + 1) * kPanelColumns;
    task_size_ = divided_up(task_bytes, block_ * item_bytes) * block_;
    context.kernels.load_rows(states, 0, states_, packed_.data(), states_);
  }

  const PackedItems& items() const { return items_; }
  int64_t states() const { return states_; }
  int64_t block_items() const { return block_; }
  int64_t tasks() const { return divided_up(items_.matrix().rows, task_size_); }
  bool ends_task(int64_t task, int64_t first_item, int64_t count) const {
    return first_item + count == std::min(items_.matrix().rows, (task + 1) * task_size_);
  }

  template <class Visit>
  void run(const Visit& visit) const {
    const int64_t panel_size = panels_size(states_, kPanelColumns), scratch_size = states_ * block_ + panel_size;
    Buffer scratch(scratch_size * context_.threads.count());
    context_.threads.run(tasks(), [&](int64_t task, int thread) {
      float* scores = scratch.data() + scratch_size * thread;
      float* panel = scores + states_ * block_;
      const int64_t end = std::min(items_.matrix().rows, (task + 1) * task_size_);
      for (int64_t first = task * task_size_; first < end; first += block_) {
        const int64_t count = std::min(block_, end - first);
        for (int64_t item = 0; item < count; item += kPanelColumns) {
          fetch_panel(first + item + kPanelColumns);
          context_.kernels.gemm(states_, kPanelColumns, items_.matrix().columns, {packed_.data(), states_},
                                items_.panel(first + item), 1.0f, false, {panel, states_});
          for (int64_t state = 0; state < states_; ++state) {
            std::copy_n(panel + state * kPanelColumns, kPanelColumns, scores + state * block_ + item);
          }
        }
        visit(task, thread, first, count, scores);
      }
    });
  }

  // The scores [ids, count] of listed items and states [first_state, … + count).
  void of_items(const std::vector<int64_t>& ids, int64_t first_state, int64_t count, float* scores) const {
    const Matrix& items = items_.matrix();
    const int64_t dim = items.columns, all = static_cast<int64_t>(ids.size());
    Buffer transposed(panels_size(dim, count), 0.0f);
    for (int64_t state = 0; state < count; ++state) {
      const float* row = packed_.data() + (first_state + state) * kPanelColumns;
      float* column = transposed.data() + state / kPanelColumns * kPanelColumns * dim + state % kPanelColumns;
      for (int64_t d = 0; d < dim; ++d) {
        column[d * kPanelColumns] = row[d / kPanelColumns * kPanelColumns * states_ + d % kPanelColumns];
      }
    }
    for (const int64_t id : ids) fetch_row(id);
    const int64_t together = std::min<int64_t>(all, 48);  // in memory that is small enough to be reused
    Buffer rows(panels_size(together, dim)), products(panels_size(together, count));
    for (int64_t first = 0; first < all; first += together) {
      const int64_t some = std::min(together, all - first);
      for (int64_t i = 0; i < some; ++i) {
        context_.kernels.load_rows(items, ids[first + i], 1, rows.data() + i * kPanelColumns, some);
      }
      context_.kernels.gemm(some, round_up(count, kLanes), dim, {rows.data(), some}, {transposed.data(), dim}, 1.0f,
                            false, {products.data(), some});
      for (int64_t i = 0; i < some; ++i) {
        for (int64_t state = 0; state < count; ++state) {
          const int64_t panel = state / kPanelColumns * some + i;
          scores[(first + i) * count + state] = products[panel * kPanelColumns + state % kPanelColumns];
        }
      }
    }
  }

 private:
  // The next panel comes from memory while this one is multiplied.
  void fetch_panel(int64_t first) const {
    if (first >= items_.matrix().rows) return;
    constexpr int64_t cache_line = 64;
    const auto* bytes = reinterpret_cast<const char*>(items_.panel(first).data);
    const int64_t size = kPanelColumns * items_.matrix().columns * bytes_of(DataType::float32);
    for (int64_t byte = 0; byte < size; byte += cache_line) __builtin_prefetch(bytes + byte, 0, 2);
  }

  // Rows that lie apart are waited for together.
  void fetch_row(int64_t id) const {
    constexpr int64_t cache_line = 64;
    const auto* bytes = static_cast<const char*>(row_of(items_.matrix(), id));
    const int64_t size = items_.matrix().columns * bytes_of(items_.matrix().type);
    for (int64_t byte = 0; byte < size; byte += cache_line) __builtin_prefetch(bytes + byte);
  }

  const Context& context_;
  const PackedItems& items_;
  int64_t states_;
  Buffer packed_;  // panels [states, D]
  int64_t block_;
  int64_t task_size_;  // items
};

// Rows [first, first + count) of a matrix without norms.
inline Matrix rows_of(const Matrix& matrix, int64_t first, int64_t count) {
  return {row_of(matrix, first), matrix.type, count, matrix.columns, matrix.stride};
}

// How often integers did instead of a sweep in float32.
struct QuantizedCounts {
  int64_t rows = 0;      // for which they did
  int64_t rescored = 0;  // items that were scored in float32 for those
};

// As the operators of these names (operators.h); a row's answer does not depend on the other rows. Where the items are
// there as integers, these do for up to `quantized_states` states; −1: for as many as is faster.
QuantizedCounts top_items(const Context& context, const Matrix& states, const PackedItems& items, int64_t k,
                          const ExcludedIds& excluded, int64_t quantized_states, float* scores, int64_t* ids);
int64_t top_mixture_items(const Context& context, const Matrix& states, const float* log_weights, int64_t streams,
                          const PackedItems& items, int64_t k, double temperature, const ExcludedIds& excluded,
                          float* scores, int64_t* ids);

// top_items by the integers of the items: writes all rows but those that are open.
struct QuantizedAnswer {
  std::vector<int64_t> open;  // rows that bounds do not hold for, or prove so little of that a sweep is faster
  int64_t rescored = 0;       // items that were scored in float32
};
QuantizedAnswer top_items_by_integers(const Context& context, const Matrix& states, const PackedItems& items, int64_t k,
                                      const ExcludedIds& excluded, float* scores, int64_t* ids);

}  // namespace plr_kernels
