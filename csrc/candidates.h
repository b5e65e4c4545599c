// The best items that a thread has seen so far, for each of some rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "buffer.h"

namespace plr_kernels {

// A candidate as one number: the larger one is the better item. The score in an order-preserving form, NaN above all as
// torch.sort has it, over the complement of the id, so that ties go to the smaller id.
using Key = uint64_t;

constexpr int64_t kMostItems = int64_t{1} << 32;  // their ids fit into a Key

inline Key key_of(float score, int64_t id) {
  uint32_t bits;
  const float number = score + 0.0f;  // −0 equals 0
  std::memcpy(&bits, &number, sizeof(bits));
  bits = std::isnan(score) ? 0xffffffffu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return Key{bits} << 32 | ~static_cast<uint32_t>(id);
}

inline float score_of(Key key) {
  uint32_t bits = static_cast<uint32_t>(key >> 32);
  bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score;
}

inline int64_t id_of(Key key) { return static_cast<uint32_t>(~key); }

// Brings the k largest to the front, the k-th largest last of them; needs k <= count.
inline void select(Key* keys, int64_t count, int64_t k) {
  std::nth_element(keys, keys + k - 1, keys + count, std::greater<Key>());
}

// Items come in ascending order of their ids: after k of them, only a score above the k-th best one can enter. A row's
// list is cut back to its k best when it is full, and not before, so that an entry costs a constant on average.
class Candidates {
 public:
  // Of `items` items; `bounds` takes padded_rows numbers.
  Candidates(int64_t rows, int64_t padded_rows, int64_t k, int64_t items)
      : k_(k),
        room_(room(k, items)),
        counts_(rows, 0),
        // In a lane that is no row only NaN is above the bound.
        bounds_(padded_rows, std::numeric_limits<float>::infinity()),
        keys_(new Key[rows * room_]) {
    std::fill_n(bounds_.data(), rows, -std::numeric_limits<float>::infinity());
  }

  static int64_t room(int64_t k, int64_t items) { return std::min(items, k + std::max<int64_t>(k, 64)); }

  // Scores that are not above it need not be pushed.
  const float* bounds() const { return bounds_.data(); }

  void push(int64_t row, float score, int64_t id) {
    if (score <= bounds_[row]) return;
    Key* keys = keys_.get() + row * room_;
    keys[counts_[row]++] = key_of(score, id);
    if (counts_[row] < room_) return;
    select(keys, room_, k_);
    counts_[row] = k_;
    const float worst = score_of(keys[k_ - 1]);
    // Above a bound that is NaN would be everything; above infinity is NaN alone.
    bounds_[row] = std::isnan(worst) ? std::numeric_limits<float>::infinity() : worst;
  }

  void append_to(std::vector<Key>& all, int64_t row) const {
    const Key* keys = keys_.get() + row * room_;
    all.insert(all.end(), keys, keys + counts_[row]);
  }

 private:
  int64_t k_;
  int64_t room_;
  std::vector<int64_t> counts_;
  Buffer bounds_;
  std::unique_ptr<Key[]> keys_;  // not initialised: what no candidate reaches takes no memory
};

}  // namespace plr_kernels
