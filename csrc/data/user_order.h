// Interactions sorted by user, then by time; equal ones stay in their order.
#pragma once

#include <cstdint>
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

// Two passes, each of which reads and writes one stretch of memory after the other: into parts of consecutive users that
// fit into the cache, then each part by itself. N < 2^32. The result does not depend on the number of threads.
class UserOrder {
 public:
  // The first pass; the blocks and ranks are not needed afterwards.
  UserOrder(const std::vector<Block>& blocks, Ranks user_ranks, Ranks item_ranks, int threads);

  int64_t size() const { return length_; }
  int64_t users() const { return users_; }
  bool with_time() const { return with_time_; }
  bool with_positive() const { return with_positive_; }

  // The second pass.
  void write(const Columns& columns) const;

 private:
  struct Record {
    uint32_t user, item;  // the item's highest bit: positive
    uint32_t place;
    uint32_t time[2];  // in halves, for records without padding
  };

  // The records of a part that one thread found, in the order of the file.
  struct Chunks {
    std::vector<const Record*> begins;
    const Record* end = nullptr;  // of the last one; the others are full
  };

  template <class Use>
  void each(int64_t part, const Use& use) const;
  void write_part(int64_t part, int64_t to, uint32_t count, const Columns& columns, std::vector<uint32_t>& ends,
                  std::vector<Record>& records) const;

  int64_t length_ = 0, users_;
  int threads_, shift_ = 0;
  bool with_time_, with_positive_;
  std::vector<std::vector<Chunks>> chunks_;  // of every part, by thread
  LargeArray<Record> records_;
};

}  // namespace plr_data
