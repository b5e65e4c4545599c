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
#include "kernels.h"

namespace plr_kernels {

// A candidate as one number: the larger one is the better item. The score in an order-preserving form, NaN above all as
// torch.sort has it, over the complement of the id, so that ties go to the smaller id.
using Key = int64_t;

constexpr int64_t kMostItems = int64_t{1} << 32;  // their ids fit into a Key

inline Key key_of(float score, int64_t id) {
  constexpr int32_t largest = std::numeric_limits<int32_t>::max();
  int32_t bits;
  const float number = score + 0.0f;  // −0 equals 0
  std::memcpy(&bits, &number, sizeof(bits));
  bits = std::isnan(score) ? largest : bits < 0 ? bits ^ largest : bits;
  return Key{bits} * kMostItems + ~static_cast<uint32_t>(id);
}

inline float score_of(Key key) {
  int32_t bits = static_cast<int32_t>(key >> 32);
  bits = bits < 0 ? bits ^ std::numeric_limits<int32_t>::max() : bits;
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score;
}

inline int64_t id_of(Key key) { return static_cast<uint32_t>(~key); }

// Brings the k largest to the front, the k-th largest last of them; k <= count.
inline void select(const Kernels& kernels, Key* keys, int64_t count, int64_t k) {
  if (count <= kMostRanked) {
    kernels.rank(keys, count, k);
  } else {
    std::nth_element(keys, keys + k - 1, keys + count, std::greater<Key>());
  }
}

// Items come in ascending order of their ids: after k of them, only a score above the k-th best one can enter. A row's
// list is cut back to its k best when it is full, and not before, so that an entry costs a constant on average.
class Candidates {
 public:
  // The `k` best of `items` items, for each of the rows, a multiple of 16.
  Candidates(const Kernels& kernels, int64_t rows, int64_t k, int64_t items)
      : kernels_(&kernels),
        k_(k),
        room_(room(k, items)),
        counts_(rows, 0),
        bounds_(rows, -std::numeric_limits<float>::infinity()),
        keys_(new Key[rows * room_]) {}

  // For what is no row: only NaN is above its bound.
  void close(int64_t row) { bounds_[row] = std::numeric_limits<float>::infinity(); }

  static int64_t room(int64_t k, int64_t items) { return std::min(items, k + std::max<int64_t>(k, 32)); }

  // Scores that are not above it need not be pushed.
  const float* bounds() const { return bounds_.data(); }

  void push(int64_t row, float score, int64_t id) {
    if (score <= bounds_[row]) return;
    Key* keys = keys_.get() + row * room_;
    keys[counts_[row]++] = key_of(score, id);
    if (counts_[row] < room_) return;
    select(*kernels_, keys, room_, k_);
    counts_[row] = k_;
    bounds_[row] = score_of(keys[k_ - 1]);  // nothing is at most NaN: then all are pushed, and their keys decide
  }

  void append_to(std::vector<Key>& all, int64_t row) const {
    const Key* keys = keys_.get() + row * room_;
    all.insert(all.end(), keys, keys + counts_[row]);
  }

 private:
  const Kernels* kernels_;
  int64_t k_;
  int64_t room_;
  std::vector<int64_t> counts_;
  Buffer bounds_;
  std::unique_ptr<Key[]> keys_;  // not initialised: what no candidate reaches takes no memory
};

}  // namespace plr_kernels
