// The best items of each row, by blocks of scores.
//
// Each thread keeps its own candidates; at the end each row's are merged. The k best in a strict order are the same
// however the items are shared among threads: results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "candidates.h"
#include "operators.h"
#include "panels.h"

namespace plr_kernels {

constexpr float kNoCandidate = -std::numeric_limits<float>::infinity();  // above no bound

inline void check_items_fit_keys(int64_t items) {
  if (items > kMostItems) {
    throw std::invalid_argument("items must have at most 2**32 rows on the cpp backend, found " +
                                std::to_string(items));
  }
}

class BestItems {
 public:
  // For `rows` rows; a block has at most `block_items` items.
  BestItems(const Context& context, int64_t rows, int64_t k, int64_t items, int64_t block_items)
      : kernels_(context.kernels), k_(k), found_size_(block_items * kLanes),
        found_(new uint32_t[found_size_ * context.threads.count()]) {
    candidates_.reserve(context.threads.count());
    const int64_t padded_rows = round_up(rows, kLanes);
    for (int thread = 0; thread < context.threads.count(); ++thread) {
      candidates_.emplace_back(kernels_, padded_rows, k, items);
    }
    for (int64_t row = rows; row < padded_rows; ++row) close(row);
  }

  // As many rows together as leave their candidates in a few megabytes: a multiple of 32.
  static int64_t rows_together(int64_t k, int64_t items, int64_t states_per_row = 1) {
    constexpr int64_t candidates_bytes = 4 << 20, most_rows = 1024;
    const int64_t row_bytes = Candidates::room(k, items) * states_per_row * static_cast<int64_t>(sizeof(Key));
    return std::clamp(candidates_bytes / row_bytes / kPanelColumns * kPanelColumns, kPanelColumns, most_rows);
  }

  void close(int64_t row) {
    for (Candidates& of_thread : candidates_) of_thread.close(row);
  }

  // Calls visit(i) for those of the scores [count] of a row that are not at most its bound, in order; the scores up to
  // the next multiple of 16 are overwritten.
  template <class Visit>
  void above(int thread, int64_t row, float* scores, int64_t count, const Visit& visit) {
    constexpr int64_t together = 16 * kLanes;  // few, as the first of a block raise the bound
    std::fill(scores + count, scores + round_up(count, kLanes), kNoCandidate);
    uint32_t* found = found_.get() + found_size_ * thread;
    for (int64_t first = 0; first < count; first += together) {
      float bounds[kLanes];
      std::fill_n(bounds, kLanes, bound(thread, row));
      const int64_t vectors = round_up(std::min(together, count - first), kLanes) / kLanes;
      const int64_t survivors = kernels_.find_above(scores + first, kLanes, vectors, bounds, found);
      for (int64_t i = 0; i < survivors; ++i) visit(first + found[i]);
    }
  }

  // The scores [count] of one row; those up to the next multiple of 16 are overwritten.
  void add_row(int thread, int64_t row, float* scores, int64_t count, int64_t first_item) {
    above(thread, row, scores, count, [&](int64_t i) { push(thread, row, scores[i], first_item + i); });
  }

  // The scores of 16 rows from `row` on, those of an item `step` numbers after those of the one before.
  void add_lanes(int thread, int64_t row, const float* scores, int64_t step, int64_t count, int64_t first_item) {
    Candidates& best = candidates_[thread];
    uint32_t* found = found_.get() + found_size_ * thread;
    const int64_t survivors = kernels_.find_above(scores, step, count, best.bounds() + row, found);
    for (int64_t i = 0; i < survivors; ++i) {
      const int64_t item = found[i] / kLanes, lane = found[i] % kLanes;
      best.push(row + lane, scores[item * step + lane], first_item + item);
    }
  }

  // What a row's k-th best of a thread reaches at least.
  float bound(int thread, int64_t row) const { return candidates_[thread].bounds()[row]; }

  void push(int thread, int64_t row, float score, int64_t id) { candidates_[thread].push(row, score, id); }

  // The best of a row, best first, at most k.
  void best(int64_t row, std::vector<Key>& keys) const {
    keys.clear();
    for (const Candidates& of_thread : candidates_) of_thread.append_to(keys, row);
    best_of(keys);
    std::sort(keys.begin(), keys.end(), std::greater<Key>());
  }

  // The score of a row's k-th best, -inf where there are fewer.
  float worst(int64_t row, std::vector<Key>& keys) const {
    keys.clear();
    for (const Candidates& of_thread : candidates_) of_thread.append_to(keys, row);
    best_of(keys);
    return static_cast<int64_t>(keys.size()) == k_ ? score_of(*std::min_element(keys.begin(), keys.end())) : kNoCandidate;
  }

  // Leaves the k largest, in any order.
  void best_of(std::vector<Key>& keys) const {
    if (static_cast<int64_t>(keys.size()) <= k_) return;
    select(kernels_, keys.data(), static_cast<int64_t>(keys.size()), k_);
    keys.resize(k_);
  }

 private:
  const Kernels& kernels_;
  int64_t k_;
  int64_t found_size_;
  std::unique_ptr<uint32_t[]> found_;  // not initialised
  std::vector<Candidates> candidates_;  // of each thread
};

// What the operators write.
struct BestItemsOutput {
  float* scores;  // [R, k]
  int64_t* ids;   // [R, k]
  int64_t k;

  // At most k keys, best first; what is missing has score −inf and id −1.
  void write(int64_t row, const std::vector<Key>& keys) const {
    float* row_scores = scores + row * k;
    int64_t* row_ids = ids + row * k;
    for (const Key key : keys) {
      *row_scores++ = score_of(key);
      *row_ids++ = id_of(key);
    }
    const int64_t missing = k - static_cast<int64_t>(keys.size());
    std::fill_n(row_scores, missing, kNoCandidate);
    std::fill_n(row_ids, missing, -1);
  }
};

}  // namespace plr_kernels
