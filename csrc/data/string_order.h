// The strings of a table in the order of their bytes.
#pragma once

#include <cstdint>

#include "large_array.h"
#include "string_table.h"

namespace plr_data {

struct Ordered {
  uint64_t key;  // eight bytes of the string, from the first one on that is not the same in all; compares as they do
  uint32_t address;  // in the table
  uint32_t length;
};

// Returns all strings of the table, compared by bytes.
LargeArray<Ordered> in_order(const StringTable& table, int threads);

}  // namespace plr_data
