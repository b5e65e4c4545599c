// Items as 8-bit integers with certified bounds of their scores: which items can be among the best is found by reading a
// quarter of the bytes, and only those are scored in float32.
//
// For a state h and an item e, rows of D float32 numbers, with Euclidean norms |.|, u = 2**-24:
//
//     e ≈ s q,  s ≈ max |e_i| / 127 a float32 number, q integers in [−127, 127]      r = |e − s q|
//     h ≈ t g,  t ≈ max |h_i| / G a float32 number, g integers in [−G, G]            c = |h − t g| <= γ |h|
//
// The sum T = g · q is of integers. As |T| <= 127 D G < 2**31 (largest_number), sums modulo 2**32, in any order, give it
// exactly, for every D. As a real number, h · e differs from t s T by
//
//     |h · (e − s q) + (h − t g) · s q| <= |h| r + c (|e| + r).
//
// The score f is h · e in float32: products summed one after the other, in blocks of 256 terms whose sums are added
// (PackedSweep). A product is rounded n = D + D / 256 + 2 times at most on its way, fused or not; where n u <= 1 / 4,
//
//     |f − h · e| <= 4/3 n u Σ |h_i e_i| + what underflows <= 4/3 n u |h| |e| + what underflows.
//
// The sweep computes b = (t float(T) + H ρ) s, H >= |h|, in float32. Each of the two terms is rounded five times at most:
//
//     |b − (t s T + H ρ s)| <= 8 u (t s |T| + H ρ s) + what underflows,      t s |T| <= (|h| + c) (|e| + r).
//
// and from it a = b − 2 H ρ s, rounded three times: |a − (b − 2 H ρ s)| <= 4 u (|b| + 2 H ρ s) + what underflows.
//
// An operation that underflows errs by 2**-126 at most, also where the processor takes subnormal numbers for zeros, on
// the way in or out. That is 3 D + 16 operations, and D (|h| + |e|) 2**-126 for numbers that are taken for zeros. Where
// 2**-40 <= |h| <= 2**40 and |e| <= 2**40, the terms without |e| are together below |h| (D + 4) 2**-84, and the one with
// it is below 2/3 n u |h| |e|. Nothing overflows: all sums are below 2**82.
//
// So a < f < b where
//
//     (1 − 32 u) ρ s > r + (2 n u + 16 u + γ) (1 + γ) (|e| + r) + (D + 4) 2**-84.
//
// A group of 16 items has one ρ, the largest of theirs, of which r makes up all but a few hundredths. It is computed in
// double precision, with a margin for that, and rounded up; s is at least 2**-74, so that the last term counts for
// nothing. γ is √D / (2 G), what rounding to nearest gives, and is checked for every state. A state for which it does not
// hold, or whose norm is out of range or not finite, is not certified: it is ranked in float32. An item whose norm is out
// of range or not finite has the scale NaN, hence b = NaN: it is scored in float32 whatever the state.
//
// Selection: let L be the k-th largest lower bound a of the items that a row may return. k of them have f > L, and an item
// with b <= L has f < L: it is not among the k best, whatever its number. The others are scored as PackedSweep does it, so
// that scores, numbers and ties are those of a sweep in float32.
//
// Not for mixtures (top_mixture_items.cpp): s(v) = log2 Σ_m exp2(o_m + scale d_m(v)), o_m = log2(weight_m) − Z_m, with
// Z_m the log-sum-exp of all float32 scores d_m. The bits of s(v) are those of Z_m, which takes every d_m(v): the sweep in
// float32, on whose way the streams' lists cost next to nothing. Bounds would give Z_m to within scale H ρ s, some tenths
// where logits are some tens, which decides neither the bits of a score nor the order of items that differ in which stream
// they owe their probability to. Integers could stand in for no more than the second sweep of rows without a certificate.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "matrix.h"
#include "quantized.h"

namespace plr_kernels {

class QuantizedItems {
 public:
  // Whether the sums of rows with so many columns are bounded well enough.
  static bool takes(int64_t dim) { return dim <= int64_t{1} << 20; }

  QuantizedItems(int64_t items, int64_t dim);

  // Puts `count` <= 32 items from `first` on, a multiple of 32, in their place: rows as panels with room for 32.
  void put(int64_t first, int64_t count, const float* rows);

  QuantizedGroups groups() const {
    return {reinterpret_cast<const uint8_t*>(bytes_.data()), radii_.data(), dim_};
  }
  // An item's score for a state of this norm is above its upper bound less this.
  float width(int64_t item, float norm) const {
    return 2 * norm * radii_[item / kLanes] * groups().scales(item / kLanes)[item % kLanes];
  }
  // How many items have no bounds.
  int64_t unbounded() const { return unbounded_; }

 private:
  // Item `item` from a row whose panels are `step` numbers apart. Returns its radius in units of its scale.
  double put_item(int64_t item, const float* row, int64_t step);

  int64_t dim_;
  int64_t unbounded_ = 0;
  Buffer bytes_;
  Buffer radii_;
};

class QuantizedStates {
 public:
  explicit QuantizedStates(const Matrix& states);  // float32

  // Whether the bounds hold.
  bool certified(int64_t state) const { return states_[state].norm > 0.0f; }
  const QuantizedState* data() const { return states_.data(); }
  float norm(int64_t state) const { return states_[state].norm; }

 private:
  std::vector<int16_t> numbers_;
  std::vector<int8_t> high_, low_;
  std::vector<QuantizedState> states_;
};

}  // namespace plr_kernels
