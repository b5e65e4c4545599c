// Many queries of one (b, h): 16 of them lie side by side in the lanes, so that nothing is summed over lanes, and what a
// query sees is padded to what the longest of its neighbours sees. Numbers of entries are rows of the block's queries.
#pragma once

#include <cstdint>

#include "../exp2.h"
#include "dots.h"
#include "dropout.h"
#include "rows.h"

namespace plr_kernels {
namespace {

// Rows of float32 numbers, `stride` numbers apart.
struct FloatRows {
  const float* data;
  int64_t stride;
};

// Queries [first, first + 16) of a block; beyond its count, lanes that see what the longest sees and are not read.
struct QueryLanes {
  int64_t first;
  int64_t shortest;  // prefix entries that all of them see
  int64_t longest;   // those that some see
  Vector lengths;    // of each

  QueryLanes(const AttentionCall& call, const QueryBlock& block, int64_t first)
      : first(first), shortest(block.length), longest(block.longest_of(call, first, kLanes)) {
    alignas(64) float numbers[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t length = first + i < block.count ? block.length_of(call, first + i) : longest;
      shortest = smaller(shortest, length);
      numbers[i] = static_cast<float>(length);  // exact up to 2^24, where the workspace would have 6 GB
    }
    lengths = load(numbers);
  }

  // x where the lane sees prefix entry e, else y.
  Vector where_seen(int64_t e, Vector x, Vector y) const {
    return where_greater(lengths, broadcast(static_cast<float>(e)), x, y);
  }
};

// Four neighbouring columns of four rows, as rows of the result: target[column * kLanes + row].
inline void transpose_four(const float* const (&rows)[4], int64_t column, float* target) {
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t Lanes __attribute__((vector_size(16)));
  Four a, b, c, d;
  __builtin_memcpy(&a, rows[0] + column, sizeof(a));
  __builtin_memcpy(&b, rows[1] + column, sizeof(b));
  __builtin_memcpy(&c, rows[2] + column, sizeof(c));
  __builtin_memcpy(&d, rows[3] + column, sizeof(d));
#ifdef __clang__
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Four columns[4] = {
      __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
#else
  const Lanes low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  const Four ab_low = __builtin_shuffle(a, b, low), ab_high = __builtin_shuffle(a, b, high);
  const Four cd_low = __builtin_shuffle(c, d, low), cd_high = __builtin_shuffle(c, d, high);
  const Four columns[4] = {__builtin_shuffle(ab_low, cd_low, first), __builtin_shuffle(ab_low, cd_low, second),
                           __builtin_shuffle(ab_high, cd_high, first), __builtin_shuffle(ab_high, cd_high, second)};
#endif
  for (int i = 0; i < 4; ++i) __builtin_memcpy(target + i * kLanes, &columns[i], sizeof(Four));
}

// 16 rows of whole Vectors, `stride` apart -> lanes [stride, 16].
inline void to_lanes(const float* rows, int64_t stride, float* lanes) {
  for (int64_t i = 0; i < kLanes; i += 4) {
    const float* const four[4] = {rows + i * stride, rows + (i + 1) * stride, rows + (i + 2) * stride,
                                  rows + (i + 3) * stride};
    for (int64_t column = 0; column < stride; column += 4) transpose_four(four, column, lanes + column * kLanes + i);
  }
}

// products[i] = factor · ⟨row i, left⟩ in every lane for Entries rows; left is [dim, 16].
template <int Entries>
inline void lane_dots_tile(const float* rows, int64_t stride, const float* left, int64_t dim, Vector factor,
                           float* products) {
  Vector tile[Entries];
#pragma GCC unroll 16
  for (int i = 0; i < Entries; ++i) tile[i] = zero();
  for (int64_t column = 0; column < dim; ++column) {
    const Vector from_left = load(left + column * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < Entries; ++i) {
      // Three rows of every four are addressed from the first of them: there are fewer address registers than rows.
      const float* four = rows + i / 4 * 4 * stride + column;
      tile[i] = multiply_add(broadcast(four[i % 4 * stride]), from_left, tile[i]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Entries; ++i) store(products + i * kQueriesPerBlock, tile[i] * factor);
}

// The same for `entries` rows.
template <int Entries = kLaneEntries>
inline void lane_dots(int64_t entries, FloatRows rows, const float* left, int64_t dim, Vector factor, float* products) {
  for (; entries >= Entries; entries -= Entries) {
    lane_dots_tile<Entries>(rows.data, rows.stride, left, dim, factor, products);
    rows.data += Entries * rows.stride;
    products += Entries * kQueriesPerBlock;
  }
  if constexpr (Entries > 1) lane_dots<Entries / 2>(entries, rows, left, dim, factor, products);
}

// products[s] = factor · ⟨left row, suffix entry s⟩ in the lane of each query.
template <DataType type>
inline void lane_suffix_dots(const AttentionCall& call, const Strided& tensor, const QueryBlock& block,
                             const QueryLanes& lanes, const float* left, int64_t left_stride, Vector factor,
                             float* products) {
  const Source streams = rows_of(call, tensor, block);
  const int64_t ahead = to_next_block(call, tensor, block);
  for (int64_t s = 0; s < call.suffix; ++s) {
    Vector sums[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t stream = lanes.first + i;
      if (stream >= block.count) {
        sums[i] = zero();
        continue;
      }
      const char* row = entries_of(call, tensor, streams, stream).row(s);
      const char* next_row = row + ahead;
      dot_tile<type, 1, 1>(left + stream * left_stride, left_stride, &row, &next_row, 1, call.dim, sums + i, 1);
    }
    store(products + s * kQueriesPerBlock, sums_of_lanes(sums) * factor);
  }
}

// Sets entries that some lanes do not see to `value` in these.
inline void fill_unseen(const QueryLanes& lanes, Vector value, float* rows) {
  for (int64_t e = lanes.shortest; e < lanes.longest; ++e) {
    float* row = rows + e * kQueriesPerBlock;
    store(row, lanes.where_seen(e, load(row), value));
  }
}

// visit(row) for the rows of prefix entries that some lanes see, and of suffix entries, which begin at `suffix_start`.
template <class Visit>
inline void for_rows(const AttentionCall& call, const QueryLanes& lanes, int64_t suffix_start, const Visit& visit) {
  for (int64_t e = 0; e < lanes.longest; ++e) visit(e * kQueriesPerBlock);
  for (int64_t s = 0; s < call.suffix; ++s) visit((suffix_start + s) * kQueriesPerBlock);
}

// visit(row, keep) for the same, where keep is c of ../../attention.h.
template <class Visit>
inline void for_rows_with_dropout(const AttentionCall& call, const QueryBlock& block, const QueryLanes& lanes,
                                  int64_t suffix_start, const Visit& visit) {
  const Dropout& dropout = *call.dropout;
  const Vector factor = broadcast(dropout.inverse_keep);
  const uint64_t first_row = static_cast<uint64_t>(block.first_row(call) + lanes.first);
  const auto visit_part = [&](uint32_t part, int64_t first, int64_t entries) {
    for_words_of_rows(dropout, first_row, part, entries, [&](int64_t entry, Words words) {
      visit((first + entry) * kQueriesPerBlock, kept_factor(dropout, words, factor));
    });
  };
  visit_part(0, 0, lanes.longest);
  visit_part(1, suffix_start, call.suffix);
}

struct LaneSums {
  Vector maximum;  // m
  Vector sum;      // Σ exp2(s − m), 1 where there is nothing to attend to
};

// Scores s times log2(e) -> exp2(s − m), zero where an entry is not seen.
inline LaneSums lane_exponentials(const AttentionCall& call, const QueryLanes& lanes, int64_t suffix_start,
                                  float* scores) {
  const Vector nothing = broadcast(-__builtin_inff());
  fill_unseen(lanes, nothing, scores);
  Vector largest = nothing;
  for_rows(call, lanes, suffix_start, [&](int64_t row) { largest = maximum_of(load(scores + row), largest); });
  if (call.suffix == 0) largest = lanes.where_seen(0, largest, zero());
  Vector sum = zero();
  for_rows(call, lanes, suffix_start, [&](int64_t row) {
    const Vector power = exp2(load(scores + row) - largest);
    store(scores + row, power);
    sum = sum + power;
  });
  if (call.suffix == 0) sum = lanes.where_seen(0, sum, broadcast(1.0f));
  return {largest, sum};
}

// Per query, with c and g of ../../attention.h: scores -> p, kept = c p, and where wanted
// gradient: ⟨output gradient, v⟩ -> ds = p (g − Σ p g) scale.
inline void lane_softmax_backward(const AttentionCall& call, const QueryBlock& block, const QueryLanes& lanes,
                                  int64_t suffix_start, bool scores_wanted, float* scores, float* kept,
                                  float* gradient) {
  const Vector inverse_sum = broadcast(1.0f) / lane_exponentials(call, lanes, suffix_start, scores).sum;
  Vector mean = zero();  // of g under p
  const auto with_keep = [&](int64_t row, auto kept_of) __attribute__((always_inline)) {
    const Vector p = load(scores + row) * inverse_sum;
    store(scores + row, p);
    store(kept + row, kept_of(p));
    if (!scores_wanted) return;
    const Vector g = kept_of(load(gradient + row));
    store(gradient + row, g);
    mean = multiply_add(p, g, mean);
  };
  if (scores_wanted) fill_unseen(lanes, zero(), gradient);
  if (call.dropout == nullptr) {
    for_rows(call, lanes, suffix_start, [&](int64_t row) { with_keep(row, [](Vector x) { return x; }); });
  } else {
    for_rows_with_dropout(call, block, lanes, suffix_start,
                          [&](int64_t row, Vector keep) { with_keep(row, [&](Vector x) { return x * keep; }); });
  }
  if (!scores_wanted) return;
  const Vector scale = broadcast(static_cast<float>(call.scale));
  for_rows(call, lanes, suffix_start, [&](int64_t row) {
    store(gradient + row, load(scores + row) * (load(gradient + row) - mean) * scale);
  });
}

}  // namespace
}  // namespace plr_kernels
