// top_items: blocks of scores, and for each row a running selection of the best.
//
// Each thread keeps its own candidates; at the end each row's are merged. The k best in a strict order are the same
// however the items are shared among threads, and so are the scores: results do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "candidates.h"
#include "exclusions.h"
#include "operators.h"
#include "panels.h"
#include "score_blocks.h"
#include "states.h"

namespace plr_kernels {

namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();  // above no bound

struct Output {
  float* scores;  // [R, k]
  int64_t* ids;   // [R, k]
  int64_t k;
};

// The best of `rows` rows, whose first is row `first_row` of the output, from the candidates of all threads.
void merge(const Context& context, const std::vector<Candidates>& candidates, int64_t first_row, int64_t rows,
           const Output& output) {
  const int64_t k = output.k;
  const int64_t tasks = std::min<int64_t>(rows, 4 * context.threads.count());
  context.threads.run(tasks, [&](int64_t task, int) {
    std::vector<Key> all;
    for (int64_t row = rows * task / tasks; row < rows * (task + 1) / tasks; ++row) {
      all.clear();
      for (const Candidates& of_thread : candidates) of_thread.append_to(all, row);
      if (static_cast<int64_t>(all.size()) > k) {
        select(context.kernels, all.data(), all.size(), k);
        all.resize(k);
      }
      std::sort(all.begin(), all.end(), std::greater<Key>());
      float* scores = output.scores + (first_row + row) * k;
      int64_t* ids = output.ids + (first_row + row) * k;
      for (const Key key : all) {
        *scores++ = score_of(key);
        *ids++ = id_of(key);
      }
      const int64_t missing = k - static_cast<int64_t>(all.size());
      std::fill_n(scores, missing, -std::numeric_limits<float>::infinity());
      std::fill_n(ids, missing, -1);
    }
  });
}

std::vector<Candidates> candidates_of_threads(const Context& context, int64_t rows, int64_t k, int64_t items) {
  std::vector<Candidates> candidates;
  candidates.reserve(context.threads.count());
  for (int thread = 0; thread < context.threads.count(); ++thread) {
    candidates.emplace_back(context.kernels, rows, round_up(rows, kPanelColumns), k, items);
  }
  return candidates;
}

// For few rows, each multiplied with the items by itself: the time is that of reading the items once from where they
// are; each block of them meets all rows while it is in the first-level cache.
void top_items_by_gemv(const Context& context, const Matrix& states, const Matrix& items, const ExcludedIds& excluded,
                       const Output& output) {
  constexpr int64_t block_bytes = 1 << 15;  // of items
  constexpr int64_t task_bytes = 1 << 19;
  const int64_t rows = states.rows, dim = states.columns;
  const int64_t block = std::clamp<int64_t>(block_bytes / (dim * bytes_of(items.type)) / kLanes * kLanes, kLanes, 1024);
  const int64_t blocks = divided_up(items.rows, block);
  const int64_t blocks_per_task = divided_up(task_bytes, block * dim * bytes_of(items.type));

  const Exclusions exclusions(excluded, 0, rows, items.rows, block);
  const int64_t row_panels = panels_size(1, dim);
  Buffer upcast(rows * row_panels);
  for (int64_t row = 0; row < rows; ++row) {
    context.kernels.load_rows(states, row, 1, upcast.data() + row * row_panels, 1);
  }
  std::vector<Candidates> candidates = candidates_of_threads(context, rows, output.k, items.rows);
  Buffer scratch(block * context.threads.count());
  std::vector<uint32_t> positions(block * context.threads.count());
  context.threads.run(divided_up(blocks, blocks_per_task), [&](int64_t task, int thread) {
    float* scores = scratch.data() + block * thread;
    uint32_t* found = positions.data() + block * thread;
    Candidates& best = candidates[thread];
    const int64_t end = std::min(items.rows, (task + 1) * blocks_per_task * block);
    for (int64_t first = task * blocks_per_task * block; first < end; first += block) {
      const int64_t count = std::min(block, end - first);
      for (int64_t row = 0; row < rows; ++row) {
        context.kernels.gemv(items, first, count, upcast.data() + row * row_panels, scores);
        std::fill(scores + count, scores + round_up(count, kLanes), kExcluded);
        exclusions.visit(first, row, row + 1, [&](int64_t, int64_t item) { scores[item] = kExcluded; });
        float bounds[kLanes];
        std::fill_n(bounds, kLanes, best.bounds()[row]);
        const int64_t survivors = context.kernels.find_above(scores, kLanes, divided_up(count, kLanes), bounds, found);
        for (int64_t i = 0; i < survivors; ++i) best.push(row, scores[found[i]], first + found[i]);
      }
    }
  });
  merge(context, candidates, 0, rows, output);
}

// Whether every row of a matrix consists of whole pairs of bfloat16, aligned as pairs.
bool lies_in_pairs(const Matrix& items) {
  constexpr std::uintptr_t pair_bytes = 4;
  return items.type == DataType::bfloat16 && items.columns % 2 == 0 && items.stride % 2 == 0 &&
         reinterpret_cast<std::uintptr_t>(items.data) % pair_bytes == 0;
}

// Rows [first_row, first_row + rows): blocks of scores [items, 32 rows] from products of matrices.
void top_items_by_gemm(const Context& context, const Matrix& matrix, int64_t first_row, int64_t rows,
                       const Matrix& items, bool paired, const ExcludedIds& excluded, const Output& output) {
  std::vector<int64_t> listed(rows);
  std::iota(listed.begin(), listed.end(), first_row);
  const States states = pack_states(context, matrix, listed_order(std::move(listed)), 1.0, paired);
  const int64_t block_items = items_per_block(items.rows), blocks = divided_up(items.rows, block_items);
  const int64_t tasks = std::min<int64_t>(blocks, 16 * context.threads.count());
  const Exclusions exclusions(excluded, first_row, rows, items.rows, block_items);
  std::vector<Candidates> candidates = candidates_of_threads(context, rows, output.k, items.rows);

  const auto gemm = paired ? context.kernels.pairs.gemm_unpacked : context.kernels.gemm_unpacked;
  // The items as the product reads them: as they lie in memory, or else copied block by block.
  const bool in_place = paired ? lies_in_pairs(items) : items.type == DataType::float32;
  const int64_t row_size = paired ? states.depth : panels_size(1, states.dim);
  const int64_t copied_size = in_place ? 0 : block_items * row_size;
  const int64_t scores_size = panels_size(block_items, kPanelColumns);
  Buffer scratch((copied_size + scores_size) * context.threads.count());
  std::vector<uint32_t> positions(block_items * kLanes * context.threads.count());
  const int64_t panels = states.count / kPanelColumns;
  context.threads.run(tasks, [&](int64_t task, int thread) {
    float* copied = scratch.data() + (copied_size + scores_size) * thread;
    float* scores = copied + copied_size;
    uint32_t* found = positions.data() + block_items * kLanes * thread;
    Candidates& best = candidates[thread];
    const int64_t end = std::min(items.rows, blocks * (task + 1) / tasks * block_items);
    for (int64_t first_item = blocks * task / tasks * block_items; first_item < end; first_item += block_items) {
      const int64_t count = std::min(block_items, end - first_item);
      const int64_t next_count = std::min(block_items, end - first_item - count);
      for (int64_t i = 0; !in_place && i < count; ++i) {
        float* row = copied + i * row_size;
        if (paired) {
          row[row_size - 1] = 0.0f;  // the last pair of an odd number of columns has only one
          context.kernels.pairs.round_row(items, first_item + i, reinterpret_cast<uint16_t*>(row));
        } else {
          context.kernels.load_rows(items, first_item + i, 1, row, 1);
        }
      }
      const Matrix block = in_place ? Matrix{row_of(items, first_item), DataType::float32, count, states.depth,
                                             items.stride / states.per_cell()}
                                    : Matrix{copied, DataType::float32, count, states.depth, row_size};
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = panel * kPanelColumns, last = std::min(rows, first + kPanelColumns);
        // While the panels are computed, the next block of items comes from memory.
        const int64_t fetch_from = next_count * panel / panels, fetch_to = next_count * (panel + 1) / panels;
        gemm(block, round_up(last - first, kLanes), states.transposed.data() + first * states.depth, scores, items,
             first_item + count + fetch_from, fetch_to - fetch_from);
        exclusions.visit(first_item, first, last,
                         [&](int64_t row, int64_t item) { scores[item * kPanelColumns + row - first] = kExcluded; });
        for (int64_t row = first; row < last; row += kLanes) {
          const float* column = scores + row - first;
          const int64_t survivors =
              context.kernels.find_above(column, kPanelColumns, count, best.bounds() + row, found);
          for (int64_t i = 0; i < survivors; ++i) {
            const int64_t item = found[i] / kLanes, lane = found[i] % kLanes;
            if (row + lane >= rows) continue;  // a lane that is no row, and NaN for an item that is not finite
            best.push(row + lane, column[item * kPanelColumns + lane], first_item + item);
          }
        }
      }
    }
  });
  merge(context, candidates, first_row, rows, output);
}

}  // namespace

void top_items(const Context& context, const Matrix& states, const Matrix& items, int64_t k,
               const ExcludedIds& excluded, float* scores, int64_t* ids) {
  if (items.rows > kMostItems) {
    throw std::invalid_argument("items must have at most 2**32 rows on the cpp backend, found " +
                                std::to_string(items.rows));
  }
  const Output output{scores, ids, k};
  constexpr int64_t few_rows = 8;
  if (states.rows <= few_rows && states.columns >= kLanes) {
    if (states.rows > 0) top_items_by_gemv(context, states, items, excluded, output);
    return;
  }
  // Rounding the items takes longer than it saves for few rows.
  constexpr int64_t least_rounded_rows = 17;
  const bool paired =
      takes_pairs(context, states, items) && (items.type == DataType::bfloat16 || states.rows >= least_rounded_rows);
  // As many rows together as leave their candidates in a few megabytes.
  constexpr int64_t candidates_bytes = 4 << 20, most_rows = 1024;
  const int64_t row_bytes = Candidates::room(k, items.rows) * static_cast<int64_t>(sizeof(Key));
  const int64_t together =
      std::clamp(candidates_bytes / row_bytes / kPanelColumns * kPanelColumns, kPanelColumns, most_rows);
  for (int64_t first = 0; first < states.rows; first += together) {
    top_items_by_gemm(context, states, first, std::min(together, states.rows - first), items, paired, excluded, output);
  }
}

}  // namespace plr_kernels
