// Memory for what a thread computes with, kept from one call to the next: fresh memory costs a page fault every 4 KiB.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "../buffer.h"
#include "../panels.h"

namespace plr_kernels {

class Arena {
 public:
  // Not initialised; valid until `release`.
  float* take(int64_t numbers) {
    const int64_t size = round_up(numbers, kLanes);
    if (used_ + size > room_) {
      const int64_t room = std::max(2 * room_, size);
      blocks_.emplace_back(room);  // may throw: nothing is changed before
      room_ = room;
      used_ = 0;
      total_ += room;
    }
    float* result = blocks_.back().data() + used_;
    used_ += size;
    return result;
  }

  MutablePanels panels(int64_t rows, int64_t columns) { return {take(panels_size(rows, columns)), rows}; }

  // Takes all back. What was taken from several blocks is one the next time; little is kept where much was taken.
  void release() {
    constexpr int64_t most_kept = int64_t{1} << 24;  // numbers: 64 MiB
    if (blocks_.size() > 1 || total_ > most_kept) {
      const int64_t next = total_ > most_kept ? 0 : total_;
      blocks_.clear();
      room_ = total_ = 0;
      try {
        if (next > 0) {
          blocks_.emplace_back(next);
          room_ = total_ = next;
        }
      } catch (const std::bad_alloc&) {
        // Taken when it is needed.
      }
    }
    used_ = 0;
  }

 private:
  std::vector<Buffer> blocks_;
  int64_t room_ = 0;   // of the last block
  int64_t used_ = 0;   // of it
  int64_t total_ = 0;  // of all
};

inline Panels view(MutablePanels panels) { return {panels.data, panels.rows}; }
inline MutablePanels from_row(MutablePanels panels, int64_t row) {
  return {panels.data + row * kPanelColumns, panels.rows};
}
inline void copy_row(Panels source, int64_t row, MutablePanels target, int64_t to, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kPanelColumns) {
    std::copy_n(source.data + row * kPanelColumns + column * source.rows, kPanelColumns,
                target.data + to * kPanelColumns + column * target.rows);
  }
}
inline Panels from_row(Panels panels, int64_t row) { return {panels.data + row * kPanelColumns, panels.rows}; }

}  // namespace plr_kernels
