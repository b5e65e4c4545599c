// A block of queries where a (b, h) has many: queries lie in the lanes. ../../attention.h has the equations.
#pragma once

#include <cstdint>

#include "../../attention.h"
#include "../common.h"
#include "outer_products.h"
#include "query_lanes.h"
#include "rows.h"
#include "weighted_sums.h"
#include "weights.h"

namespace plr_kernels {
namespace {

// The prefix entries of (b, h) as float32: where they lie, or upcast into `target` [P, dim].
template <DataType type>
inline FloatRows float_rows(const AttentionCall& call, const Strided& tensor, const BatchHead& batch_head,
                            int64_t target_stride, float* target) {
  const Source source = rows_of(call, tensor, batch_head);
  if constexpr (type == DataType::float32) {
    return {reinterpret_cast<const float*>(source.data), tensor.row_stride};
  }
  for (int64_t e = 0; e < batch_head.length(call); ++e) {
    upcast_row<type>(source.row(e), call.dim, target + e * target_stride);
  }
  return {target, target_stride};
}

// The queries of a block, or the gradients of their outputs, as float32 [Q, dim]: zero beyond D, and beyond the count up
// to whole lanes. These are never read, but leftovers of other calls could be denormal numbers, which are slow.
template <DataType type>
inline void upcast_lanes(const AttentionCall& call, const Strided& tensor, const QueryBlock& block, float* target,
                         int64_t target_stride) {
  upcast_rows<type>(call, tensor, block, target, target_stride);
  const int64_t end = round_up(block.count, kLanes) * target_stride;
  for (int64_t i = block.count * target_stride; i < end; i += kLanes) store(target + i, zero());
}

// products = factor · ⟨left, entry⟩ of 16 queries and all prefix and suffix entries; space.lanes becomes left's.
template <DataType type>
inline void lane_products(const AttentionCall& call, const QueryBlock& block, const QueryLanes& lanes,
                          const AttentionWorkspace& space, const float* left, FloatRows prefix, const Strided& suffix,
                          float factor, float* products) {
  const Vector scale = broadcast(factor);
  to_lanes(left + lanes.first * space.dim, space.dim, space.lanes);
  lane_dots(lanes.longest, prefix, space.lanes, call.dim, scale, products + lanes.first);
  lane_suffix_dots<type>(call, suffix, block, lanes, left, space.dim, scale,
                         products + block.length * kQueriesPerBlock + lanes.first);
}

// Σ weight · row of `prefix` and `suffix` for the queries of a block. The last one fetches the next (b, h)'s prefix
// meanwhile; all fetch the next block's suffixes where these have not been visited before.
template <DataType type>
inline void lane_weighted_sums(const AttentionCall& call, const QueryBlock& block, const Strided& prefix,
                               const Strided& suffix, bool first_visit, const float* weights,
                               const AttentionWorkspace& space) {
  const Rows rows = prefix_rows(call, prefix, block, prefix, block.batch_head.next(call));
  const Fetches others = first_visit ? Fetches::suffix : Fetches::none;
  const Fetches fetches = !block.is_last(call) ? others : first_visit ? Fetches::all : Fetches::prefix;
  weighted_sums<type>(call, rows, suffix, block, fetches, RowPerEntry{weights}, block.length, space.output, space.dim);
}

// Forward pass of a block: output [Q, D] = softmax(s) with dropout · values, lse [Q] = log2 Σ exp2(s), null where not
// wanted. Both are those of the whole call.
template <DataType type>
void forward_of_many(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space,
                     FloatRows prefix_key, void* output, float* lse) {
  const int64_t row_bytes = call.dim * bytes_of(type);
  char* target = static_cast<char*>(output) + block.first_row(call) * row_bytes;
  upcast_lanes<type>(call, call.query, block, space.query, space.dim);
  for (int64_t first = 0; first < block.count; first += kLanes) {
    const QueryLanes lanes(call, block, first);
    float* scores = space.weights + first;
    lane_products<type>(call, block, lanes, space, space.query, prefix_key, call.stream_key,
                        static_cast<float>(call.scale * kLog2E), space.weights);
    const auto [maximum, sum] = lane_exponentials(call, lanes, block.length, scores);
    store(space.factor + first, broadcast(1.0f) / sum);
    if (lse != nullptr) {
      alignas(64) float maxima[kLanes], sums[kLanes];
      store(maxima, maximum);
      store(sums, sum);
      for (int64_t i = 0; first + i < block.count && i < kLanes; ++i) {
        const bool nothing = call.suffix == 0 && block.length_of(call, first + i) == 0;
        lse[block.first_row(call) + first + i] = nothing ? -__builtin_inff() : maxima[i] + __builtin_log2f(sums[i]);
      }
    }
    if (call.dropout == nullptr) continue;
    for_rows_with_dropout(call, block, lanes, block.length, [&](int64_t row, Vector keep) {
      store(scores + row, load(scores + row) * keep);
    });
  }
  lane_weighted_sums<type>(call, block, call.prefix_value, call.stream_value, true, space.weights, space);
  write_rows<type>(block, space, call.dim, space.factor, target);
}

// The prefix entries that others of the block see, and none of 16 queries, have no weight.
inline void clear_beyond(const QueryBlock& block, const QueryLanes& lanes, float* weights) {
  for (int64_t e = lanes.longest; e < block.length; ++e) store(weights + e * kQueriesPerBlock, zero());
}

// Backward pass of a block: recomputes the scores, then the gradients that are wanted; those of the prefix are written
// where the block has all queries of (b, h), else summed in the workspace.
template <DataType type, Sums sums>
void backward_of_many(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space,
                      FloatRows prefix_key, FloatRows prefix_value, const Strided& output_gradient,
                      const AttentionGradients& wanted) {
  const bool scores_wanted = wanted.query != nullptr || wanted.prefix_key != nullptr || wanted.stream_key != nullptr;
  const int64_t row_bytes = call.dim * bytes_of(type);
  upcast_lanes<type>(call, call.query, block, space.query, space.dim);
  upcast_lanes<type>(call, output_gradient, block, space.output_gradient, space.dim);
  for (int64_t first = 0; first < block.count; first += kLanes) {
    const QueryLanes lanes(call, block, first);
    lane_products<type>(call, block, lanes, space, space.query, prefix_key, call.stream_key,
                        static_cast<float>(call.scale * kLog2E), space.weights);
    if (scores_wanted) {
      lane_products<type>(call, block, lanes, space, space.output_gradient, prefix_value, call.stream_value, 1.0f,
                          space.weights_gradient);
      clear_beyond(block, lanes, space.weights_gradient + first);
    }
    lane_softmax_backward(call, block, lanes, block.length, scores_wanted, space.weights + first, space.kept + first,
                          space.weights_gradient + first);
    clear_beyond(block, lanes, space.kept + first);
  }
  const RowPerEntry scores{space.weights_gradient}, kept{space.kept};
  if (wanted.query != nullptr) {
    lane_weighted_sums<type>(call, block, call.prefix_key, call.stream_key, false, space.weights_gradient, space);
    write_rows<type>(block, space, call.dim, nullptr,
                     static_cast<char*>(wanted.query) + block.first_row(call) * row_bytes);
  }
  const auto prefix_part = [&](const Strided& tensor, const RowPerEntry& weights, const float* left, float* total,
                               void* gradient) {
    if (gradient == nullptr) return;
    if (block.count == call.streams) {
      prefix_gradient<type, sums>(call, tensor, block, weights, left, space.dim, gradient);
    } else {
      add_prefix_gradient(call, block, weights, left, space.dim, total, space.dim);
    }
  };
  prefix_part(call.prefix_key, scores, space.query, space.prefix_key_sum, wanted.prefix_key);
  prefix_part(call.prefix_value, kept, space.output_gradient, space.prefix_value_sum, wanted.prefix_value);
  suffix_gradients<type, sums>(call, block, space, scores, kept, block.length, wanted);
}

}  // namespace
}  // namespace plr_kernels
