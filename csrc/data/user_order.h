// Interactions sorted by user, then by time; equal ones stay in their order.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "large_array.h"

namespace plr_data {

// Consecutive interactions of a file. `time` and `positive` may be null: there is none.
struct Block {
  int64_t length;
  const uint32_t* user;
  const uint32_t* item;
  const int64_t* time;
  const bool* positive;
};

// The rank among the sorted ids that every number of a user or item stands for.
struct Ranks {
  const int32_t* data;  // [size], each in 0..size-1
  uint32_t size;
};

// [N], but offsets [U+1]: where the interactions of each user begin, and the end.
struct Columns {
  int64_t* offsets;
  int32_t* item;
  int64_t* time;  // may be null, as `positive`
  bool* positive;
  uint32_t* place;  // where each stood
};

// Into parts of consecutive users that fit into the cache, which are counted first, then each part by itself: memory is
// read and written one stretch after the other. N < 2^32. The result does not depend on the number of threads.
class UserOrder {
 public:
  // Makes the parts; the blocks and ranks are not needed afterwards. Calls consumed(b) as soon as block b is not, from any
  // of its threads: what is given back then need not be had anew for what is written here.
  UserOrder(const std::vector<Block>& blocks, Ranks user_ranks, Ranks item_ranks, int threads,
            const std::function<void(size_t)>& consumed);

  int64_t size() const { return length_; }
  int64_t users() const { return users_; }
  bool with_time() const { return with_time_; }
  bool with_positive() const { return with_positive_; }

  // Sorts the parts, once: each is given back when it is written.
  void write(const Columns& columns);

 private:
  struct Record {
    uint32_t user, item;  // the item's highest bit: positive
    uint32_t place;
    uint32_t time[2];  // in halves, for records without padding
  };

  void write_part(int64_t part, const std::vector<size_t>& begins, const Columns& columns, std::vector<uint32_t>& ends,
                  std::vector<Record>& sorted) const;

  int64_t length_ = 0, users_;
  int threads_, shift_ = 0;
  bool with_time_, with_positive_;
  std::vector<size_t> begins_;  // of every part among the records, and the end
  LargeArray<Record> records_;  // those of a part in the order of the file
};

}  // namespace plr_data
