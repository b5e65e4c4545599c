// stream_attention for one batch entry and head (b, h): the two passes, of which each is one call of a kernel. Queries
// are computed in blocks, which the kernel visits one after the other while the prefix stays in the cache.
#pragma once

#include <cstdint>

#include "../../attention.h"
#include "../common.h"
#include "few_queries.h"
#include "many_queries.h"
#include "outer_products.h"
#include "rows.h"

namespace plr_kernels {
namespace {

template <DataType type>
void forward_of_batch_head(const AttentionCall& call, const BatchHead& batch_head, const AttentionWorkspace& space,
                           void* output, float* lse) {
  if (!has_many_queries(call)) {
    forward_of_few<type>(call, QueryBlock(call, batch_head, 0), space, output, lse);
    return;
  }
  const FloatRows prefix_key = float_rows<type>(call, call.prefix_key, batch_head, space.dim, space.upcast_key);
  for (int64_t index = 0; index < QueryBlock::blocks(call); ++index) {
    forward_of_many<type>(call, QueryBlock(call, batch_head, index), space, prefix_key, output, lse);
  }
}

template <DataType type, Sums sums>
void backward_of_blocks(const AttentionCall& call, const BatchHead& batch_head, const AttentionWorkspace& space,
                        const Strided& output_gradient, const AttentionGradients& wanted) {
  const int64_t blocks = QueryBlock::blocks(call);
  const int64_t summed = blocks > 1 ? batch_head.length(call) * space.dim : 0;
  clear(space.prefix_key_sum, summed);
  clear(space.prefix_value_sum, summed);
  const FloatRows prefix_key = float_rows<type>(call, call.prefix_key, batch_head, space.dim, space.upcast_key);
  const FloatRows prefix_value = float_rows<type>(call, call.prefix_value, batch_head, space.dim, space.upcast_value);
  for (int64_t index = 0; index < blocks; ++index) {
    backward_of_many<type, sums>(call, QueryBlock(call, batch_head, index), space, prefix_key, prefix_value,
                                 output_gradient, wanted);
  }
  if (blocks > 1 && wanted.prefix_key != nullptr) {
    store_prefix_gradient<type, sums>(call, call.prefix_key, batch_head, space.prefix_key_sum, space.dim,
                                      wanted.prefix_key);
  }
  if (blocks > 1 && wanted.prefix_value != nullptr) {
    store_prefix_gradient<type, sums>(call, call.prefix_value, batch_head, space.prefix_value_sum, space.dim,
                                      wanted.prefix_value);
  }
}

template <DataType type, Sums sums>
void backward_of_batch_head(const AttentionCall& call, const BatchHead& batch_head, const AttentionWorkspace& space,
                            const Strided& output_gradient, const AttentionGradients& wanted) {
  if (has_many_queries(call)) {
    backward_of_blocks<type, sums>(call, batch_head, space, output_gradient, wanted);
  } else {
    backward_of_few<type, sums>(call, QueryBlock(call, batch_head, 0), space, output_gradient, wanted);
  }
  if constexpr (sums == Sums::past_cache) finish_stores_past_cache();
}

void attention_forward(const AttentionCall& call, int64_t number, float* memory, void* output, float* lse) {
  const AttentionWorkspace space(call, memory);
  with_type(call.type, [&](auto type) {
    forward_of_batch_head<type.value>(call, BatchHead(call, number), space, output, lse);
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
