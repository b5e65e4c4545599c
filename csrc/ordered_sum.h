// The sum of what parts of the work have found.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "buffer.h"

namespace plr_kernels {

// Adds the parts' sums up in the order of the parts, whichever is ready first: so the total does not depend on the
// threads. A part that is ready too soon is kept until its turn; nobody waits. Of `size` numbers each, few more sums are
// there at once than threads, unless one of these has no core for a while: then at most as many as there are parts.
class OrderedSum {
 public:
  // `total` [size] is to be zeros.
  OrderedSum(int64_t parts, int64_t size, float* total) : size_(size), total_(total), ready_(parts) {}

  // Zeros for the sum of a part.
  Buffer start() {
    Buffer sum;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        sum = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (sum.data() == nullptr) sum = Buffer(size_);
    std::fill_n(sum.data(), size_, 0.0f);
    return sum;
  }

  // Every part once.
  void add(int64_t part, Buffer sum) {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_[part] = std::move(sum);
    if (adding_) return;  // whoever adds takes this one, too
    adding_ = true;
    while (next_ < static_cast<int64_t>(ready_.size()) && ready_[next_].data() != nullptr) {
      Buffer addend = std::move(ready_[next_]);
      lock.unlock();
      for (int64_t i = 0; i < size_; ++i) total_[i] += addend[i];
      lock.lock();
      free_.push_back(std::move(addend));
      ++next_;
    }
    adding_ = false;
  }

 private:
  const int64_t size_;
  float* const total_;
  std::mutex mutex_;
  std::vector<Buffer> ready_, free_;
  int64_t next_ = 0;  // whose turn it is
  bool adding_ = false;
};

}  // namespace plr_kernels
