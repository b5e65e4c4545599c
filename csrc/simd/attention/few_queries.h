// A block of queries where a (b, h) has few: entries lie in the lanes. ../../attention.h has the equations.
#pragma once

#include <cstdint>

#include "../../attention.h"
#include "../common.h"
#include "../exp2.h"
#include "dots.h"
#include "dropout.h"
#include "outer_products.h"
#include "rows.h"
#include "weighted_sums.h"
#include "weights.h"

namespace plr_kernels {
namespace {

// Sets the padding of prefix and suffix in every row [Q, row_size] (and some entries, which are still to be written).
inline void fill_up(const AttentionCall& call, const QueryBlock& block, float value, float* rows, int64_t row_size) {
  const int64_t suffix_start = round_up(block.length, kLanes), end = suffix_start + round_up(call.suffix, kLanes);
  for (int64_t m = 0; m < block.count; ++m) {
    if (block.length < suffix_start) store(rows + m * row_size + suffix_start - kLanes, broadcast(value));
    if (suffix_start + call.suffix < end) store(rows + m * row_size + end - kLanes, broadcast(value));
  }
}

// Sets what prefix entries have that a query does not see, though others of its block do.
inline void fill_unseen(const AttentionCall& call, const QueryBlock& block, float value, float* rows,
                        int64_t row_size) {
  if (call.query_lengths == nullptr) return;
  for (int64_t m = 0; m < block.count; ++m) {
    for (int64_t e = block.length_of(call, m); e < block.length; ++e) rows[m * row_size + e] = value;
  }
}

// Whether query m has nothing to attend to, though others of its block have.
inline bool sees_nothing(const AttentionCall& call, const QueryBlock& block, int64_t m) {
  return call.suffix == 0 && block.length_of(call, m) == 0;
}

inline void clear(float* row, int64_t entries) {
  for (int64_t e = 0; e < entries; e += kLanes) store(row + e, zero());
}

struct MaximumAndSum {
  float maximum;  // m
  float sum;      // Σ exp2(s − m)
};

// Scores s of `size` > 0 entries, a multiple of 16, times log2(e) -> exp2(s − m).
inline MaximumAndSum exponentials(float* scores, int64_t size) {
  Vector largest = load(scores);
  for (int64_t e = kLanes; e < size; e += kLanes) largest = maximum_of(load(scores + e), largest);
  const float maximum = largest_lane(largest);
  const Vector shift = broadcast(maximum);
  Vector sum = zero();
  for (int64_t e = 0; e < size; e += kLanes) {
    const Vector power = exp2(load(scores + e) - shift);
    store(scores + e, power);
    sum = sum + power;
  }
  return {maximum, sum_of_lanes(sum)};
}

// products [Q, row_size] = factor · ⟨left [Q, dim], prefix entry⟩, `other` where a query does not see it and in the
// padding of the suffix.
template <DataType type>
inline void all_prefix_dots(const AttentionCall& call, const QueryBlock& block, const float* left,
                            const AttentionWorkspace& space, const Rows& rows, float factor, float other,
                            float* products) {
  fill_up(call, block, other, products, space.row_size);
  prefix_dots<type>(block.count, left, space.dim, rows, call.dim, factor, products, space.row_size);
  fill_unseen(call, block, other, products, space.row_size);
}

// As upcast_rows; fetches the rows of the next (b, h).
template <DataType type>
inline void upcast_and_fetch(const AttentionCall& call, const Strided& tensor, const QueryBlock& block, float* target,
                             int64_t target_stride) {
  upcast_rows<type>(call, tensor, block, target, target_stride);
  const Source next = next_rows_of(call, tensor, block);
  for (int64_t i = 0; i < block.count; ++i) fetch(next.row(i), call.dim * bytes_of(type));
}

// space.weights [Q, row_size] = scores times log2(e), -inf where there is none; also upcasts the queries and draws the
// random words. The prefix' values are read next.
template <DataType type>
inline void all_scores(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space) {
  const float factor = static_cast<float>(call.scale * kLog2E);
  upcast_and_fetch<type>(call, call.query, block, space.query, space.dim);
  all_prefix_dots<type>(call, block, space.query, space,
                        prefix_rows(call, call.prefix_key, block, call.prefix_value, block.batch_head), factor,
                        -__builtin_inff(), space.weights);
  suffix_dots<type>(call, call.stream_key, block, space.query, space.dim, factor,
                    space.weights + round_up(block.length, kLanes), space.row_size);
  if (call.dropout != nullptr) draw_words(call, block, space.words, space.row_size);
}

// The prefix keys or values that a block sums; the next (b, h)'s keys are fetched meanwhile.
inline Rows rows_before_next(const AttentionCall& call, const Strided& tensor, const QueryBlock& block) {
  return prefix_rows(call, tensor, block, call.prefix_key, block.batch_head.next(call));
}

// Forward pass of a block: output [Q, D] = softmax(s) with dropout · values, lse [Q] = log2 Σ exp2(s), null
// where not wanted. Both are those of the whole call.
template <DataType type>
void forward_of_few(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space, void* output,
                      float* lse) {
  const int64_t entries = round_up(block.length, kLanes) + round_up(call.suffix, kLanes);
  const int64_t row_bytes = call.dim * bytes_of(type);
  char* target = static_cast<char*>(output) + block.first_row(call) * row_bytes;
  if (lse != nullptr) lse += block.first_row(call);
  if (entries == 0) {  // nothing to attend to
    __builtin_memset(target, 0, block.count * row_bytes);
    for (int64_t m = 0; lse != nullptr && m < block.count; ++m) lse[m] = -__builtin_inff();
    return;
  }
  fetch_for_writing(target, block.count * row_bytes);
  all_scores<type>(call, block, space);
  for (int64_t m = 0; m < block.count; ++m) {
    float* row = space.weights + m * space.row_size;
    if (sees_nothing(call, block, m)) {
      clear(row, entries);
      space.factor[m] = 1.0f;
      if (lse != nullptr) lse[m] = -__builtin_inff();
      continue;
    }
    const auto [maximum, sum] = exponentials(row, entries);
    if (lse != nullptr) lse[m] = maximum + __builtin_log2f(sum);
    space.factor[m] = 1.0f / sum;
    if (call.dropout == nullptr) continue;
    const Vector factor = broadcast(call.dropout->inverse_keep);
    for (int64_t e = 0; e < entries; e += kLanes) {
      store(row + e, dropped(*call.dropout, load(row + e), space.words + m * space.row_size + e, factor));
    }
  }
  weighted_sums<type>(call, rows_before_next(call, call.prefix_value, block), call.stream_value, block, Fetches::all,
                      RowPerQuery{space.weights, space.row_size}, round_up(block.length, kLanes), space.output,
                      space.dim);
  write_rows<type>(block, space, call.dim, space.factor, target);
}

// Per stream, with c and g of ../attention.h: scores -> p, kept = c p, and where wanted
// weights_gradient: ⟨output gradient, v⟩ -> g = c ⟨…⟩ -> ds = p (g − Σ p g) scale.
inline void softmax_backward(const AttentionCall& call, const QueryBlock& block, int64_t entries, bool scores_wanted,
                             const AttentionWorkspace& space) {
  const Vector scale = broadcast(static_cast<float>(call.scale));
  for (int64_t m = 0; m < block.count; ++m) {
    float* row = space.weights + m * space.row_size;
    float* gradient = space.weights_gradient + m * space.row_size;
    float* kept = space.kept + m * space.row_size;
    const uint32_t* words = space.words + m * space.row_size;
    if (sees_nothing(call, block, m)) {
      clear(kept, entries);
      clear(gradient, entries);
      continue;
    }
    const Vector inverse_sum = broadcast(1.0f / exponentials(row, entries).sum);
    const Vector keep = broadcast(call.dropout == nullptr ? 1.0f : call.dropout->inverse_keep);
    for (int64_t e = 0; e < entries; e += kLanes) {
      const Vector p = load(row + e) * inverse_sum;
      store(row + e, p);
      store(kept + e, call.dropout == nullptr ? p : dropped(*call.dropout, p, words + e, keep));
    }
    if (!scores_wanted) continue;
    Vector sum = zero();  // of p g
    for (int64_t e = 0; e < entries; e += kLanes) {
      Vector g = load(gradient + e);
      if (call.dropout != nullptr) g = dropped(*call.dropout, g, words + e, keep);
      store(gradient + e, g);
      sum = multiply_add(load(row + e), g, sum);
    }
    const Vector mean = broadcast(sum_of_lanes(sum));  // of g under p
    for (int64_t e = 0; e < entries; e += kLanes) {
      store(gradient + e, load(row + e) * (load(gradient + e) - mean) * scale);
    }
  }
}

// Backward pass of the one block that has all queries of (b, h): recomputes the scores, then the gradients that are
// wanted.
template <DataType type, Sums sums>
void backward_of_few(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space,
                     const Strided& output_gradient, const AttentionGradients& wanted) {
  const int64_t suffix_start = round_up(block.length, kLanes);
  const int64_t entries = suffix_start + round_up(call.suffix, kLanes);
  const bool scores_wanted = wanted.query != nullptr || wanted.prefix_key != nullptr || wanted.stream_key != nullptr;
  if (entries > 0) {
    upcast_and_fetch<type>(call, output_gradient, block, space.output_gradient, space.dim);
    all_scores<type>(call, block, space);
    if (scores_wanted) {
      all_prefix_dots<type>(call, block, space.output_gradient, space,
                            prefix_rows(call, call.prefix_value, block, call.prefix_key, block.batch_head.next(call)),
                            1.0f, 0.0f, space.weights_gradient);
      suffix_dots<type>(call, call.stream_value, block, space.output_gradient, space.dim, 1.0f,
                        space.weights_gradient + suffix_start, space.row_size);
    }
    softmax_backward(call, block, entries, scores_wanted, space);
  }
  const RowPerQuery scores{space.weights_gradient, space.row_size}, kept{space.kept, space.row_size};
  if (wanted.query != nullptr) {
    weighted_sums<type>(call, rows_before_next(call, call.prefix_key, block), call.stream_key, block, Fetches::none,
                        scores, suffix_start, space.output, space.dim);
    write_rows<type>(block, space, call.dim, nullptr,
                     static_cast<char*>(wanted.query) + block.first_row(call) * call.dim * bytes_of(type));
  }
  if (wanted.prefix_key != nullptr) {
    prefix_gradient<type, sums>(call, call.prefix_key, block, scores, space.query, space.dim, wanted.prefix_key);
  }
  if (wanted.prefix_value != nullptr) {
    prefix_gradient<type, sums>(call, call.prefix_value, block, kept, space.output_gradient, space.dim,
                                wanted.prefix_value);
  }
  suffix_gradients<type, sums>(call, block, space, scores, kept, suffix_start, wanted);
}

}  // namespace
}  // namespace plr_kernels
