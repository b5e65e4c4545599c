// top_items: blocks of scores, and for each row a running selection of the best.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "best_items.h"
#include "buffer.h"
#include "exclusions.h"
#include "matrix.h"
#include "operators.h"
#include "packed_items.h"
#include "panels.h"
#include "score_sweeps.h"
#include "states.h"

namespace plr_kernels {

namespace {

// `rows` rows, whose first is row `first_row` of the output.
void write(const Context& context, const BestItems& best, int64_t first_row, int64_t rows,
           const BestItemsOutput& output) {
  const int64_t tasks = std::min<int64_t>(rows, 4 * context.threads.count());
  context.threads.run(tasks, [&](int64_t task, int) {
    std::vector<Key> keys;
    for (int64_t row = rows * task / tasks; row < rows * (task + 1) / tasks; ++row) {
      best.best(row, keys);
      output.write(first_row + row, keys);
    }
  });
}

// A sweep with a row's scores side by side.
template <class Sweep>
void top_items_by_rows(const Context& context, const Sweep& sweep, int64_t items, const ExcludedIds& excluded,
                       const BestItemsOutput& output) {
  const int64_t rows = sweep.states();
  const Exclusions exclusions(excluded, 0, rows, items, sweep.block_items());
  BestItems best(context, rows, output.k, items, sweep.block_items());
  sweep.run([&](int64_t, int thread, int64_t first_item, int64_t count, float* block) {
    for (int64_t row = 0; row < rows; ++row) {
      float* scores = block + row * sweep.block_items();
      exclusions.visit(first_item, row, row + 1, [&](int64_t, int64_t item) { scores[item] = kNoCandidate; });
      best.add_row(thread, row, scores, count, first_item);
    }
  });
  write(context, best, 0, rows, output);
}

// Rows [first_row, first_row + rows).
void top_items_by_gemm(const Context& context, const Matrix& states, int64_t first_row, int64_t rows,
                       const Matrix& items, bool paired, const ExcludedIds& excluded, const BestItemsOutput& output) {
  std::vector<int64_t> listed(rows);
  std::iota(listed.begin(), listed.end(), first_row);
  const GemmSweep sweep(context, states, listed_order(std::move(listed)), items, paired);
  const Exclusions exclusions(excluded, first_row, rows, items.rows, sweep.block_items());
  BestItems best(context, rows, output.k, items.rows, sweep.block_items());
  const int64_t tasks = std::min<int64_t>(sweep.blocks(), 16 * context.threads.count());
  sweep.run(tasks, kPanelColumns, [&](int64_t, const ScoreBlock& block) {
    const int64_t first = block.first_state, last = std::min(rows, first + block.states);
    exclusions.visit_forbidden(block.first_item, [&](int64_t item) {
      std::fill_n(block.data + item * kPanelColumns, block.states, kNoCandidate);
    });
    exclusions.visit_listed(block.first_item, first, last, [&](int64_t row, int64_t item) {
      block.data[item * kPanelColumns + row - first] = kNoCandidate;
    });
    for (int64_t row = first; row < last; row += kLanes) {
      best.add_lanes(block.thread, row, block.data + row - first, kPanelColumns, block.items, block.first_item);
    }
  });
  write(context, best, first_row, rows, output);
}

// Some rows in float32.
void top_items_of_rows(const Context& context, const Matrix& states, const std::vector<int64_t>& rows,
                       const PackedItems& items, const ExcludedIds& excluded, const BestItemsOutput& output) {
  if (rows.empty()) return;
  const int64_t dim = states.columns, count = static_cast<int64_t>(rows.size()), k = output.k;
  Buffer copied(count * dim), scores(count * k);
  std::vector<int64_t> excluded_ids(count * excluded.columns), ids(count * k);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(static_cast<const float*>(row_of(states, rows[i])), dim, copied.data() + i * dim);
    std::copy_n(excluded.ids + rows[i] * excluded.columns, excluded.columns, excluded_ids.data() + i * excluded.columns);
  }
  const Matrix some{copied.data(), DataType::float32, count, dim, dim};
  top_items_by_rows(context, PackedSweep(context, some, items), items.matrix().rows,
                    {excluded_ids.data(), excluded.columns, excluded.allowed}, {scores.data(), ids.data(), k});
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(scores.data() + i * k, k, output.scores + rows[i] * k);
    std::copy_n(ids.data() + i * k, k, output.ids + rows[i] * k);
  }
}

}  // namespace

void top_items(const Context& context, const Matrix& states, const Matrix& items, int64_t k,
               const ExcludedIds& excluded, float* scores, int64_t* ids) {
  check_items_fit_keys(items.rows);
  const BestItemsOutput output{scores, ids, k};
  if (GemvSweep::suits(states, 1)) {
    if (states.rows > 0) {
      top_items_by_rows(context, GemvSweep(context, states, items), items.rows, excluded, output);
    }
    return;
  }
  const bool paired = GemmSweep::takes_pairs(context, states, items);
  const int64_t together = BestItems::rows_together(k, items.rows);
  for (int64_t first = 0; first < states.rows; first += together) {
    top_items_by_gemm(context, states, first, std::min(together, states.rows - first), items, paired, excluded, output);
  }
}

QuantizedCounts top_items(const Context& context, const Matrix& states, const PackedItems& items, int64_t k,
                          const ExcludedIds& excluded, int64_t quantized_states, float* scores, int64_t* ids) {
  const int64_t count = items.matrix().rows;
  check_items_fit_keys(count);
  if (quantized_states < 0) quantized_states = items.quantized_states(context.kernels, k);
  QuantizedCounts counts;
  for (int64_t first = 0; first < states.rows; first += PackedSweep::kMostStates) {
    const Matrix part = rows_of(states, first, std::min(PackedSweep::kMostStates, states.rows - first));
    const ExcludedIds of_part = excluded.from_row(first);
    const BestItemsOutput output{scores + first * k, ids + first * k, k};
    if (items.quantized() == nullptr || part.rows > quantized_states) {
      top_items_by_rows(context, PackedSweep(context, part, items), count, of_part, output);
      continue;
    }
    const QuantizedAnswer answer = top_items_by_integers(context, part, items, k, of_part, output.scores, output.ids);
    counts.rows += part.rows - static_cast<int64_t>(answer.open.size());
    counts.rescored += answer.rescored;
    top_items_of_rows(context, part, answer.open, items, of_part, output);
  }
  return counts;
}

}  // namespace plr_kernels
