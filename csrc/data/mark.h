// Marks at the indices of the chosen of many entries. numpy makes a copy of those first, under Python's lock.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace plr_data {

// Sets marks[index[n]] for all n, or those that are `chosen` (null: all). Several threads may mark the same array.
inline void mark(bool* marks, uint32_t count, const uint32_t* index, const bool* chosen, int64_t length) {
  for (int64_t n = 0; n < length; ++n) {
    const bool wanted = chosen == nullptr || chosen[n];
    if (index[n] >= count) {
      if (wanted) throw std::out_of_range("there is no mark of this index");
      continue;
    }
    // Not `&&`: whether one is chosen is hard to foresee, whether it is and has no mark yet is not.
    if (wanted & !__atomic_load_n(marks + index[n], __ATOMIC_RELAXED)) {
      __atomic_store_n(marks + index[n], true, __ATOMIC_RELAXED);
    }
  }
}

}  // namespace plr_data
