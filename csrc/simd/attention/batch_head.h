// stream_attention for one batch entry and head (b, h): the two passes, of which each is one call of a kernel. Queries
// are computed in blocks, which the kernel visits one after the other while the prefix stays in the cache.
// ../attention.h has the equations.
#pragma once

#include <cstdint>

#include "../../attention.h"
#include "../common.h"
#include "../exp2.h"
#include "dots.h"
#include "dropout.h"
#include "outer_products.h"
#include "packed_dots.h"
#include "rows.h"
#include "weighted_sums.h"

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
inline void all_prefix_dots(const AttentionCall& call, const QueryBlock& block, float* left,
                            const AttentionWorkspace& space, const Rows& rows, const float* packed,
                            const FetchedRows& fetched, float factor, float other, float* products) {
  fill_up(call, block, other, products, space.row_size);
  if (has_many_queries(call)) {
    packed_dots<type>(call, block, {packed, call.dim}, fetched, left, space.dim, factor, other, products,
                      space.row_size);
  } else {
    prefix_dots<type>(block.count, left, space.dim, rows, call.dim, factor, products, space.row_size);
    fill_unseen(call, block, other, products, space.row_size);
  }
}

// space.weights [Q, row_size] = scores times log2(e), -inf where there is none; also upcasts the queries and draws the
// random words. The prefix' values are read next, and `written` is.
template <DataType type>
inline void all_scores(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space,
                       const Source& written) {
  const float factor = static_cast<float>(call.scale * kLog2E);
  upcast_rows<type>(call, call.query, block, space.query, space.dim);
  all_prefix_dots<type>(call, block, space.query, space,
                        prefix_rows(call, call.prefix_key, block, call.prefix_value, block.batch_head),
                        space.packed_key, {next_rows_of(call, call.query, block), written}, factor, -__builtin_inff(),
                        space.weights);
  suffix_dots<type>(call, call.stream_key, block, space.query, space.dim, factor,
                    space.weights + round_up(block.length, kLanes), space.row_size);
  if (call.dropout != nullptr) draw_words(call, block, space.words, space.row_size);
}

// The prefix keys or values that a block sums, and what is fetched meanwhile: the next (b, h)'s keys; where there are
// many queries, that is left to the last block, and its values to the last block but one.
inline Rows rows_before_next(const AttentionCall& call, const Strided& tensor, const QueryBlock& block) {
  const BatchHead next = block.batch_head.next(call);
  const Strided& fetched = has_many_queries(call) && !block.is_last(call) ? call.prefix_value : call.prefix_key;
  Rows rows = prefix_rows(call, tensor, block, fetched, next);
  if (has_many_queries(call)) rows.distance = rows.count;
  return rows;
}

// Forward pass of a block of queries: output [Q, D] = softmax(s) with dropout · values, lse [Q] = log2 Σ exp2(s), null
// where not wanted. Both are those of the whole call.
template <DataType type>
void forward_of_block(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space, void* output,
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
  const bool many = has_many_queries(call);
  if (!many) fetch_for_writing(target, block.count * row_bytes);
  all_scores<type>(call, block, space, {target, row_bytes});
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
  weighted_sums<type>(call, rows_before_next(call, call.prefix_value, block), call.stream_value, block,
                      many && !block.fetches_next(call) ? Fetches::suffix : Fetches::all, space.weights, space.row_size, space.output, space.dim);
  for (int64_t m = 0; m < block.count; ++m) {
    const Vector factor = broadcast(space.factor[m]);
    for (int64_t column = 0; column < call.dim; column += kLanes) {
      store_columns<type>(target + m * row_bytes, column, call.dim,
                          load(space.output + m * space.dim + column) * factor);
    }
  }
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

// A block's part of the gradients w.r.t. keys, Σ_m ds q, and values, Σ_m c p · output gradient: those of the prefix are
// written where the block has all queries of (b, h), else summed in the workspace.
template <DataType type, Sums sums>
inline void entry_gradients(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space,
                            const AttentionGradients& wanted) {
  const int64_t suffix_start = round_up(block.length, kLanes);
  const auto prefix_part = [&](const Strided& tensor, const float* weights, const float* left, float* total,
                               void* gradient) {
    if (gradient == nullptr) return;
    if (block.count == call.streams) {
      prefix_gradient<type, sums>(call, tensor, block, weights, space.row_size, left, space.dim, gradient);
    } else {
      add_prefix_gradient(call, block, weights, space.row_size, left, space.dim, total, space.dim);
    }
  };
  prefix_part(call.prefix_key, space.weights_gradient, space.query, space.prefix_key_sum, wanted.prefix_key);
  prefix_part(call.prefix_value, space.kept, space.output_gradient, space.prefix_value_sum, wanted.prefix_value);
  if (wanted.stream_key != nullptr) {
    suffix_gradient<type, sums>(call, block, space.weights_gradient + suffix_start, space.row_size, space.query,
                                space.dim, wanted.stream_key);
  }
  if (wanted.stream_value != nullptr) {
    suffix_gradient<type, sums>(call, block, space.kept + suffix_start, space.row_size, space.output_gradient,
                                space.dim, wanted.stream_value);
  }
}

// Where a block's rows of a contiguous gradient are, `entries` rows for each query; anywhere if it is not wanted.
inline Source written_rows(const AttentionCall& call, const QueryBlock& block, const void* gradient, int64_t entries) {
  const int64_t bytes = entries * call.dim * bytes_of(call.type);
  if (gradient == nullptr || entries == 0) return {rows_of(call, call.query, block).data, 0};
  return {static_cast<const char*>(gradient) + block.first_row(call) * bytes, bytes};
}

// Backward pass of a block of queries: recomputes the scores, then the gradients that are wanted.
template <DataType type, Sums sums>
void backward_of_block(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space,
                       const Strided& output_gradient, const AttentionGradients& wanted) {
  const BatchHead& batch_head = block.batch_head;
  const int64_t suffix_start = round_up(block.length, kLanes);
  const int64_t entries = suffix_start + round_up(call.suffix, kLanes);
  const int64_t row_bytes = call.dim * bytes_of(type);
  const bool scores_wanted = wanted.query != nullptr || wanted.prefix_key != nullptr || wanted.stream_key != nullptr;
  if (entries > 0) {
    upcast_rows<type>(call, output_gradient, block, space.output_gradient, space.dim);
    all_scores<type>(call, block, space, written_rows(call, block, wanted.query, 1));
    if (scores_wanted) {
      const BatchHead next = batch_head.next(call);
      all_prefix_dots<type>(call, block, space.output_gradient, space,
                            prefix_rows(call, call.prefix_value, block, call.prefix_key, next), space.packed_value,
                            {next_rows_of(call, output_gradient, block),
                             written_rows(call, block, wanted.stream_key, call.suffix)},
                            1.0f, 0.0f, space.weights_gradient);
      suffix_dots<type>(call, call.stream_value, block, space.output_gradient, space.dim, 1.0f,
                        space.weights_gradient + suffix_start, space.row_size);
    }
    softmax_backward(call, block, entries, scores_wanted, space);
  }
  if (wanted.query != nullptr) {
    char* target = static_cast<char*>(wanted.query) + block.first_row(call) * row_bytes;
    const bool fetches = has_many_queries(call) && block.fetches_next(call);
    weighted_sums<type>(call, rows_before_next(call, call.prefix_key, block), call.stream_key, block,
                        fetches ? Fetches::prefix : Fetches::none, space.weights_gradient, space.row_size, space.output, space.dim);
    for (int64_t m = 0; m < block.count; ++m) {
      for (int64_t column = 0; column < call.dim; column += kLanes) {
        store_columns<type>(target + m * row_bytes, column, call.dim, load(space.output + m * space.dim + column));
      }
    }
  }
  entry_gradients<type, sums>(call, block, space, wanted);
}

// Packs what the queries of (b, h) are multiplied with, where they are many.
template <DataType type>
inline void pack_prefix(const AttentionCall& call, const BatchHead& batch_head, const Strided& tensor,
                        const AttentionWorkspace& space, float* packed) {
  if (!has_many_queries(call)) return;
  pack_entries<type>(rows_of(call, tensor, batch_head), batch_head.length(call), call.dim, space.upcast, packed);
}

template <DataType type, Sums sums>
void backward_of_batch_head(const AttentionCall& call, const BatchHead& batch_head, const AttentionWorkspace& space,
                            const Strided& output_gradient, const AttentionGradients& wanted) {
  const int64_t blocks = QueryBlock::blocks(call);
  const int64_t summed = blocks > 1 ? batch_head.length(call) * space.dim : 0;
  clear(space.prefix_key_sum, summed);
  clear(space.prefix_value_sum, summed);
  pack_prefix<type>(call, batch_head, call.prefix_key, space, space.packed_key);
  pack_prefix<type>(call, batch_head, call.prefix_value, space, space.packed_value);
  for (int64_t index = 0; index < blocks; ++index) {
    backward_of_block<type, sums>(call, QueryBlock(call, batch_head, index), space, output_gradient, wanted);
  }
  if (blocks > 1 && wanted.prefix_key != nullptr) {
    store_prefix_gradient<type, sums>(call, call.prefix_key, batch_head, space.prefix_key_sum, space.dim,
                                      wanted.prefix_key);
  }
  if (blocks > 1 && wanted.prefix_value != nullptr) {
    store_prefix_gradient<type, sums>(call, call.prefix_value, batch_head, space.prefix_value_sum, space.dim,
                                      wanted.prefix_value);
  }
  if constexpr (sums == Sums::past_cache) finish_stores_past_cache();
}

void attention_forward(const AttentionCall& call, int64_t number, float* memory, void* output, float* lse) {
  const AttentionWorkspace space(call, memory);
  const BatchHead batch_head(call, number);
  with_type(call.type, [&](auto type) {
    pack_prefix<type.value>(call, batch_head, call.prefix_key, space, space.packed_key);
    for (int64_t index = 0; index < QueryBlock::blocks(call); ++index) {
      forward_of_block<type.value>(call, QueryBlock(call, batch_head, index), space, output, lse);
    }
  });
}

void attention_backward(const AttentionCall& call, int64_t number, float* memory, const Strided& output_gradient,
                        const AttentionGradients& wanted) {
  const AttentionWorkspace space(call, memory);
  const BatchHead batch_head(call, number);
  if (wanted.past_cache) {  // float32
    backward_of_batch_head<DataType::float32, Sums::past_cache>(call, batch_head, space, output_gradient, wanted);
    return;
  }
  with_type(call.type, [&](auto type) {
    backward_of_batch_head<type.value, Sums::stored>(call, batch_head, space, output_gradient, wanted);
  });
}

}  // namespace
}  // namespace plr_kernels
