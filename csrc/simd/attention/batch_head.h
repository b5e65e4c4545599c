// stream_attention for one batch entry and head (b, h): the two passes, of which each is one call of a kernel.
// ../attention.h has the equations.
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

namespace plr_kernels {
namespace {

// Sets the padding of prefix and suffix in every row [M, row_size] (and some entries, which are still to be written).
inline void fill_up(const AttentionCall& call, int64_t length, float value, float* rows, int64_t row_size) {
  const int64_t suffix_start = round_up(length, kLanes), end = suffix_start + round_up(call.suffix, kLanes);
  for (int64_t m = 0; m < call.streams; ++m) {
    if (length < suffix_start) store(rows + m * row_size + suffix_start - kLanes, broadcast(value));
    if (suffix_start + call.suffix < end) store(rows + m * row_size + end - kLanes, broadcast(value));
  }
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

// space.weights [M, row_size] = scores times log2(e), padded with -inf; also upcasts the queries and draws the random
// words. The prefix' values are read next.
template <DataType type>
inline void all_scores(const AttentionCall& call, const BatchHead& batch_head, int64_t length,
                       const AttentionWorkspace& space) {
  const float factor = static_cast<float>(call.scale * kLog2E);
  fill_up(call, length, -__builtin_inff(), space.weights, space.row_size);
  upcast_rows<type>(call, call.query, batch_head, space.query, space.dim);
  prefix_dots<type>(call.streams, space.query, space.dim,
                    prefix_rows(call, call.prefix_key, batch_head, call.prefix_value, batch_head), call.dim, factor,
                    space.weights, space.row_size);
  suffix_dots<type>(call, call.stream_key, batch_head, space.query, space.dim, factor,
                    space.weights + round_up(length, kLanes), space.row_size);
  if (call.dropout != nullptr) draw_words(call, batch_head.number, length, space.words, space.row_size);
}

// Forward pass: output [M, D] = softmax(s) with dropout · values, lse [M] = log2 Σ exp2(s), null where not wanted.
template <DataType type>
void forward_of_batch_head(const AttentionCall& call, int64_t number, float* memory, void* output, float* lse) {
  const AttentionWorkspace space(call, memory);
  const BatchHead batch_head(call, number);
  const int64_t length = batch_head.length(call);
  const int64_t entries = round_up(length, kLanes) + round_up(call.suffix, kLanes);
  const int64_t row_bytes = call.dim * bytes_of(type);
  char* target = static_cast<char*>(output) + number * call.streams * row_bytes;
  if (entries == 0) {  // nothing to attend to
    __builtin_memset(target, 0, call.streams * row_bytes);
    for (int64_t m = 0; lse != nullptr && m < call.streams; ++m) {
      lse[number * call.streams + m] = -__builtin_inff();
    }
    return;
  }
  fetch_for_writing(target, call.streams * row_bytes);
  all_scores<type>(call, batch_head, length, space);
  for (int64_t m = 0; m < call.streams; ++m) {
    float* row = space.weights + m * space.row_size;
    const auto [maximum, sum] = exponentials(row, entries);
    if (lse != nullptr) lse[number * call.streams + m] = maximum + __builtin_log2f(sum);
    space.factor[m] = 1.0f / sum;
    if (call.dropout == nullptr) continue;
    const Vector factor = broadcast(call.dropout->inverse_keep);
    for (int64_t e = 0; e < entries; e += kLanes) {
      store(row + e, dropped(*call.dropout, load(row + e), space.words + m * space.row_size + e, factor));
    }
  }
  weighted_sums<type>(call, prefix_rows(call, call.prefix_value, batch_head, call.prefix_key, batch_head.next(call)),
                      call.stream_value, batch_head, true, space.weights, space.row_size, space.output, space.dim);
  for (int64_t m = 0; m < call.streams; ++m) {
    const Vector factor = broadcast(space.factor[m]);
    for (int64_t column = 0; column < call.dim; column += kLanes) {
      store_columns<type>(target + m * row_bytes, column, call.dim,
                          load(space.output + m * space.dim + column) * factor);
    }
  }
}

// Per stream, with c and g of ../attention.h: scores -> p, kept = c p, and where wanted
// weights_gradient: ⟨output gradient, v⟩ -> g = c ⟨…⟩ -> ds = p (g − Σ p g) scale.
inline void softmax_backward(const AttentionCall& call, int64_t entries, bool scores_wanted,
                             const AttentionWorkspace& space) {
  const Vector scale = broadcast(static_cast<float>(call.scale));
  for (int64_t m = 0; m < call.streams; ++m) {
    float* row = space.weights + m * space.row_size;
    float* gradient = space.weights_gradient + m * space.row_size;
    float* kept = space.kept + m * space.row_size;
    const uint32_t* words = space.words + m * space.row_size;
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

// The gradients w.r.t. keys, Σ_m ds q, and values, Σ_m c p · output gradient.
template <DataType type, bool past_cache = false>
inline void entry_gradients(const AttentionCall& call, const BatchHead& batch_head, const AttentionWorkspace& space,
                            const AttentionGradients& wanted) {
  if constexpr (type == DataType::float32 && !past_cache) {
    if (wanted.past_cache) {
      entry_gradients<type, true>(call, batch_head, space, wanted);
      finish_stores_past_cache();
      return;
    }
  }
  const int64_t suffix_start = round_up(batch_head.length(call), kLanes);
  if (wanted.prefix_key != nullptr) {
    prefix_gradient<type, past_cache>(call, call.prefix_key, batch_head, space.weights_gradient, space.row_size,
                                      space.query, space.dim, wanted.prefix_key);
  }
  if (wanted.prefix_value != nullptr) {
    prefix_gradient<type, past_cache>(call, call.prefix_value, batch_head, space.kept, space.row_size,
                                      space.output_gradient, space.dim, wanted.prefix_value);
  }
  if (wanted.stream_key != nullptr) {
    suffix_gradient<type, past_cache>(call, batch_head.number, space.weights_gradient + suffix_start, space.row_size,
                                      space.query, space.dim, wanted.stream_key);
  }
  if (wanted.stream_value != nullptr) {
    suffix_gradient<type, past_cache>(call, batch_head.number, space.kept + suffix_start, space.row_size,
                                      space.output_gradient, space.dim, wanted.stream_value);
  }
}

// Backward pass: recomputes the scores, then the gradients that are wanted.
template <DataType type>
void backward_of_batch_head(const AttentionCall& call, int64_t number, float* memory, const Strided& output_gradient,
                            const AttentionGradients& wanted) {
  const AttentionWorkspace space(call, memory);
  const BatchHead batch_head(call, number);
  const int64_t length = batch_head.length(call);
  const int64_t suffix_start = round_up(length, kLanes);
  const int64_t entries = suffix_start + round_up(call.suffix, kLanes);
  const int64_t row_bytes = call.dim * bytes_of(type);
  const bool scores_wanted = wanted.query != nullptr || wanted.prefix_key != nullptr || wanted.stream_key != nullptr;
  if (entries > 0) {
    upcast_rows<type>(call, output_gradient, batch_head, space.output_gradient, space.dim);
    all_scores<type>(call, batch_head, length, space);
    if (scores_wanted) {
      fill_up(call, length, 0.0f, space.weights_gradient, space.row_size);
      prefix_dots<type>(call.streams, space.output_gradient, space.dim,
                        prefix_rows(call, call.prefix_value, batch_head, call.prefix_key, batch_head.next(call)),
                        call.dim, 1.0f, space.weights_gradient, space.row_size);
      suffix_dots<type>(call, call.stream_value, batch_head, space.output_gradient, space.dim, 1.0f,
                        space.weights_gradient + suffix_start, space.row_size);
    }
    softmax_backward(call, entries, scores_wanted, space);
  }
  if (wanted.query != nullptr) {
    char* target = static_cast<char*>(wanted.query) + number * call.streams * row_bytes;
    weighted_sums<type>(call, prefix_rows(call, call.prefix_key, batch_head, call.prefix_key, batch_head),
                        call.stream_key, batch_head, false, space.weights_gradient, space.row_size, space.output,
                        space.dim);
    for (int64_t m = 0; m < call.streams; ++m) {
      for (int64_t column = 0; column < call.dim; column += kLanes) {
        store_columns<type>(target + m * row_bytes, column, call.dim, load(space.output + m * space.dim + column));
      }
    }
  }
  entry_gradients<type>(call, batch_head, space, wanted);
}

void attention_forward(const AttentionCall& call, int64_t number, float* memory, void* output, float* lse) {
  with_type(call.type, [&](auto type) { forward_of_batch_head<type.value>(call, number, memory, output, lse); });
}

void attention_backward(const AttentionCall& call, int64_t number, float* memory, const Strided& output_gradient,
                        const AttentionGradients& wanted) {
  with_type(call.type,
            [&](auto type) { backward_of_batch_head<type.value>(call, number, memory, output_gradient, wanted); });
}

}  // namespace
}  // namespace plr_kernels
