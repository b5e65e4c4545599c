// Which scores of each block belong to items that a row must not return.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace plr_kernels {

// Lists of excluded ids [rows, columns], padded with -1; and the items [V] that any row may return, or null for all.
struct ExcludedIds {
  const int64_t* ids;
  int64_t columns;
  const bool* allowed = nullptr;

  ExcludedIds from_row(int64_t row) const { return {ids + row * columns, columns, allowed}; }
};

// The excluded ids of rows [first_row, first_row + rows), sorted by block of items and within a block by row. It is a
// counting sort: a row's list may be as long as it likes. What no row may return is listed once, by block.
class Exclusions {
 public:
  Exclusions(const ExcludedIds& excluded, int64_t first_row, int64_t rows, int64_t items, int64_t block_items)
      : block_items_(block_items) {
    if (excluded.allowed != nullptr) list_forbidden(excluded.allowed, items);
    if (excluded.columns == 0) return;
    const int64_t* begin = excluded.ids + first_row * excluded.columns;
    const int64_t* end = begin + rows * excluded.columns;
    starts_.resize((items + block_items - 1) / block_items + 1);
    for (const int64_t* id = begin; id < end; ++id) {
      if (*id < -1 || *id >= items) {
        throw std::invalid_argument("exclude must be in [0, V), or -1 as padding (V=" + std::to_string(items) +
                                    "), found " + std::to_string(*id));
      }
      if (*id >= 0) ++starts_[*id / block_items + 1];
    }
    for (std::size_t block = 1; block < starts_.size(); ++block) starts_[block] += starts_[block - 1];
    entries_.resize(starts_.back());
    std::vector<int64_t> next(starts_.begin(), starts_.end() - 1);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < excluded.columns; ++column) {
        const int64_t id = begin[row * excluded.columns + column];
        if (id < 0) continue;
        const int64_t block = id / block_items;
        entries_[next[block]++] = {static_cast<uint32_t>(row), static_cast<uint32_t>(id - block * block_items)};
      }
    }
  }

  // Calls visit(row, item) for each excluded item of rows [first, last) in the block that starts at `first_item`; for
  // some more than once. Rows count from first_row, items from the first of the block.
  template <class Visit>
  void visit(int64_t first_item, int64_t first, int64_t last, const Visit& visit) const {
    if (!forbidden_.empty()) {
      for (int64_t row = first; row < last; ++row) {
        visit_forbidden(first_item, [&](int64_t item) { visit(row, item); });
      }
    }
    visit_listed(first_item, first, last, visit);
  }

  // Calls visit(item) for what no row may return, of that block.
  template <class Visit>
  void visit_forbidden(int64_t first_item, const Visit& visit) const {
    if (forbidden_.empty()) return;
    const int64_t block = first_item / block_items_;
    for (int64_t i = forbidden_starts_[block]; i < forbidden_starts_[block + 1]; ++i) visit(int64_t{forbidden_[i]});
  }

  // As `visit`, for what the rows' own lists have.
  template <class Visit>
  void visit_listed(int64_t first_item, int64_t first, int64_t last, const Visit& visit) const {
    if (entries_.empty()) return;
    const int64_t block = first_item / block_items_;
    const auto end = entries_.begin() + starts_[block + 1];
    auto entry = std::lower_bound(entries_.begin() + starts_[block], end, first,
                                  [](const Entry& one, int64_t row) { return one.row < row; });
    for (; entry != end && entry->row < last; ++entry) visit(int64_t{entry->row}, int64_t{entry->item});
  }

 private:
  struct Entry {
    uint32_t row;
    uint32_t item;
  };

  void list_forbidden(const bool* allowed, int64_t items) {
    forbidden_.reserve(items);
    for (int64_t first = 0; first < items; first += block_items_) {
      forbidden_starts_.push_back(static_cast<int64_t>(forbidden_.size()));
      for (int64_t item = first; item < std::min(items, first + block_items_); ++item) {
        if (!allowed[item]) forbidden_.push_back(static_cast<uint32_t>(item - first));
      }
    }
    forbidden_starts_.push_back(static_cast<int64_t>(forbidden_.size()));
  }

  int64_t block_items_;
  std::vector<int64_t> starts_;  // of each block's entries, and their number
  std::vector<Entry> entries_;
  std::vector<int64_t> forbidden_starts_;  // likewise
  std::vector<uint32_t> forbidden_;        // items that no row may return
};

}  // namespace plr_kernels
