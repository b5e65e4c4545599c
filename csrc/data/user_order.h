// Interactions sorted by user, then by time; equal ones stay in their order.
#pragma once

#include <cstdint>
#include <vector>

#include "large_array.h"

namespace plr_data {

// Columns of N interactions. `time` and `positive` may be null: there is none.
template <class Integer32, class Integer64, class Flag>
struct Columns {
  Integer32* user;  // [N], 0..U-1
  Integer32* item;
  Integer64* time;
  Flag* positive;
};
using InputColumns = Columns<const int32_t, const int64_t, const bool>;
using OutputColumns = Columns<int32_t, int64_t, bool>;

// Two passes, each of which reads and writes one stretch of memory after the other: into parts of consecutive users that
// fit into the cache, then each part by itself. N < 2^32. The result does not depend on the number of threads.
class UserOrder {
 public:
  // The first pass; the columns are not needed afterwards.
  UserOrder(const InputColumns& columns, int64_t length, int64_t users, int threads);

  int64_t size() const { return length_; }
  bool with_time() const { return with_time_; }
  bool with_positive() const { return with_positive_; }

  // The second pass: writes the sorted columns and where each interaction stood.
  void write(const OutputColumns& columns, uint32_t* place) const;

 private:
  struct Record {
    uint32_t user, item;  // the item's highest bit: positive
    uint32_t place;
    uint32_t time[2];  // in halves, for records without padding
  };

  void write_part(int64_t part, const OutputColumns& columns, uint32_t* place, std::vector<uint32_t>& ends,
                  std::vector<Record>& records) const;

  int64_t length_, users_;
  int threads_, shift_ = 0;
  bool with_time_, with_positive_;
  std::vector<int64_t> starts_;  // of every part, and the end
  LargeArray<Record> records_;
};

}  // namespace plr_data
