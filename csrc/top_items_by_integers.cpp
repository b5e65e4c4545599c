// top_items by items as 8-bit integers: bounds of all scores, then float32 scores of what they leave. quantized_items.h
// has the bounds, and why the answer is that of a sweep in float32.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "best_items.h"
#include "buffer.h"
#include "exclusions.h"
#include "operators.h"
#include "packed_items.h"
#include "panels.h"
#include "quantized_items.h"

namespace plr_kernels {

namespace {

// What may be among the k best of one row, as far as one thread has seen.
class Survivors {
 public:
  // `bound` is what the k-th best reaches at least. Returns whether there are fewer than `most`, or may be.
  bool add(float upper, int64_t item, float bound, int64_t most) {
    all_.push_back({upper, static_cast<uint32_t>(item)});
    if (static_cast<int64_t>(all_.size()) < 2 * most) return true;
    drop(bound);
    return static_cast<int64_t>(all_.size()) < most;
  }

  void drop(float bound) {
    all_.erase(std::remove_if(all_.begin(), all_.end(), [&](const Item& one) { return one.upper <= bound; }),
               all_.end());
  }

  void append_to(std::vector<int64_t>& items) const {
    for (const Item& one : all_) items.push_back(one.number);
  }

 private:
  struct Item {
    float upper;  // NaN where nothing is known
    uint32_t number;
  };
  std::vector<Item> all_;
};

// Rows that integers prove too little of.
class OpenRows {
 public:
  explicit OpenRows(int64_t rows) : open_(rows), left_(rows) {}

  void add(int64_t row) {
    if (!open_[row].exchange(true)) --left_;
  }
  bool has(int64_t row) const { return open_[row]; }
  bool all() const { return left_ == 0; }

 private:
  std::vector<std::atomic<bool>> open_;
  std::atomic<int64_t> left_;
};

}  // namespace

QuantizedAnswer top_items_by_integers(const Context& context, const Matrix& states, const PackedItems& items, int64_t k,
                                      const ExcludedIds& excluded, float* scores, int64_t* ids) {
  const QuantizedItems& quantized = *items.quantized();
  const int64_t count = items.matrix().rows, dim = states.columns, rows = states.rows;
  const int threads = context.threads.count();
  // To score an item by itself takes as long as some tens of them in a sweep.
  const int64_t most = std::max(8 * k, count / 32);
  constexpr int64_t block_bytes = 1 << 16, bounds = 1 << 16, task_bytes = 1 << 19, together = 4 * kLanes;
  const int64_t block =
      std::clamp<int64_t>(std::min(block_bytes / dim, bounds / rows) / together * together, together, 1024);
  const int64_t task_size = divided_up(task_bytes, block * dim) * block;

  const QuantizedStates integers(states);
  OpenRows open(rows);
  for (int64_t row = 0; row < rows; ++row) {
    if (!integers.certified(row) || most >= count) open.add(row);
  }
  const Exclusions exclusions({excluded.ids, excluded.columns}, 0, rows, count, block);
  BestItems lower(context, rows, k, count, block);
  std::vector<Survivors> survivors(rows * threads);
  Buffer scratch(rows * block * threads);
  context.threads.run(divided_up(count, task_size), [&](int64_t task, int thread) {
    float* upper = scratch.data() + rows * block * thread;
    const int64_t end = std::min(count, (task + 1) * task_size);
    for (int64_t first = task * task_size; first < end && !open.all(); first += block) {
      const int64_t width = std::min(block, end - first);
      context.kernels.quantized_bounds(quantized.groups(), first / kLanes, divided_up(width, kLanes), integers.data(),
                                       rows, upper, block);
      for (int64_t row = 0; row < rows; ++row) {
        if (open.has(row)) continue;
        float* of_row = upper + row * block;
        exclusions.visit(first, row, row + 1, [&](int64_t, int64_t item) { of_row[item] = kNoCandidate; });
        lower.above(thread, row, of_row, width, [&](int64_t i) {
          const int64_t item = first + i;
          const float bound = lower.bound(thread, row);
          if (of_row[i] <= bound || (excluded.allowed != nullptr && !excluded.allowed[item])) return;
          if (!survivors[thread * rows + row].add(of_row[i], item, bound, most)) open.add(row);
          const float least = of_row[i] - quantized.width(item, integers.norm(row));
          if (!std::isnan(least)) lower.push(thread, row, least, item);
        });
      }
    }
  });

  QuantizedAnswer answer;
  for (int64_t row = 0; row < rows; ++row) {
    if (open.has(row)) answer.open.push_back(row);
  }
  if (open.all()) return answer;
  const PackedSweep sweep(context, states, items);
  const BestItemsOutput output{scores, ids, k};
  std::atomic<int64_t> rescored{0};
  context.threads.run(rows, [&](int64_t row, int) {
    if (open.has(row)) return;
    std::vector<Key> keys;
    const float bound = lower.worst(row, keys);
    std::vector<int64_t> left;
    for (int thread = 0; thread < threads; ++thread) {
      survivors[thread * rows + row].drop(bound);
      survivors[thread * rows + row].append_to(left);
    }
    std::vector<float> of_left(left.size());
    sweep.of_items(left, row, 1, of_left.data());
    keys.clear();
    for (std::size_t i = 0; i < left.size(); ++i) {
      if (of_left[i] != kNoCandidate) keys.push_back(key_of(of_left[i], left[i]));
    }
    lower.best_of(keys);
    std::sort(keys.begin(), keys.end(), std::greater<Key>());
    output.write(row, keys);
    rescored += static_cast<int64_t>(left.size());
  });
  answer.rescored = rescored;
  return answer;
}

}  // namespace plr_kernels
