// One call of stream_attention: where its tensors lie in memory, and what a thread needs to work on them.
//
// Query (b, h, m) attends to `length` prefix entries, of those that the M streams share, and to its stream's suffix of S
// entries: with s the scores times scale, p = softmax(s) over both, c = 1 / (1 − dropout_p) where an entry is kept and else 0,
//
//     output[m] = Σ_e c p v        g = c ⟨output gradient, v⟩        ds = p (g − Σ_e p g) scale
//     query gradient[m] = Σ_e ds k        k's gradient = Σ_m ds q        v's gradient = Σ_m c p · output gradient
#pragma once

#include <cstdint>

#include "matrix.h"
#include "panels.h"

namespace plr_kernels {

// A tensor [B, H, R, D] or [B, H, R, S, D] of any strides, in numbers; columns are adjacent.
struct Strided {
  const void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;    // from one stream, or one prefix entry, to the next
  int64_t entry_stride;  // from one entry of a stream to the next
};

// The mask of plr_kernels/stream_attention/keep_mask.py.
struct Dropout {
  uint64_t seed;
  uint64_t threshold;  // in [0, 2^32]: an entry is kept when its random word is not below
  float inverse_keep;  // 1 / (1 − dropout_p)
};

struct AttentionCall {
  DataType type;
  int64_t batch, heads, streams, prefix, suffix, dim;  // B, H, M, P, S, D
  Strided query, prefix_key, prefix_value, stream_key, stream_value;
  const int64_t* lengths;        // [B] in [0, P], the longest of each batch entry; null: all P
  const int64_t* query_lengths;  // [B, M]; null: all those of a batch entry are the same
  double scale;
  const Dropout* dropout;  // null: none
};

// Contiguous gradients of the five tensors, in their type; null where not wanted.
struct AttentionGradients {
  void* query;
  void* prefix_key;
  void* prefix_value;
  void* stream_key;
  void* stream_value;
  // Whether those of prefix and streams are written past the caches: they are float32, whole cache lines, and more than
  // would still be there for the next reader.
  bool past_cache = false;
};

// How many queries of one (b, h) are computed together: a workspace has room for no more. Results do not depend on it:
// sums over queries are continued from block to block.
constexpr int64_t kQueriesPerBlock = 32;

inline int64_t queries_per_block(const AttentionCall& call) {
  return call.streams < kQueriesPerBlock ? call.streams : kQueriesPerBlock;
}

// Whether a (b, h) has so many queries that 16 of them are computed side by side (simd/attention/many_queries.h). It
// depends on the number of queries alone: not on whether each has a length of its own.
inline bool has_many_queries(const AttentionCall& call) { return call.streams >= 16; }

// A thread's memory for one block of queries at a time, Q of them. Numbers of queries and entries are rows of `row_size`
// per query, first the prefix, then the suffix, each padded to whole Vectors; with many queries a row of Q per entry.
struct AttentionWorkspace {
  int64_t dim;  // D in whole Vectors
  int64_t row_size;
  float* query;             // [Q, dim], zero beyond D
  float* output;            // [Q, dim]
  float* weights;           // of queries and entries: scores, then probabilities
  float* factor;            // [Q]
  uint32_t* words;          // of queries and entries: the draws of dropout; only where there are few queries
  float* output_gradient;   // [Q, dim], zero beyond D; backward only, as those below
  float* weights_gradient;  // of queries and entries
  float* kept;              // of queries and entries: c p
  // Where there are many queries: rows of 16 queries side by side, [dim, 16], and what is not float32 upcast, [P, dim].
  float* lanes;
  float* upcast_key;
  float* upcast_value;
  // Gradients of all prefix entries, summed over the blocks of queries: [P, dim] each; only where there are several.
  float* prefix_key_sum;
  float* prefix_value_sum;
  float* end;

  AttentionWorkspace(const AttentionCall& call, float* memory) {
    const bool many = has_many_queries(call);
    const int64_t queries = many ? kQueriesPerBlock : queries_per_block(call);
    dim = round_up(call.dim, kLanes);
    row_size = round_up(call.prefix, kLanes) + round_up(call.suffix, kLanes);
    const int64_t weights_size = queries * (many ? call.prefix + call.suffix : row_size);
    query = memory;
    output = query + queries * dim;
    weights = output + queries * dim;
    factor = weights + weights_size;
    words = reinterpret_cast<uint32_t*>(factor + round_up(queries, kLanes));
    output_gradient = reinterpret_cast<float*>(words) + (many ? 0 : weights_size);
    weights_gradient = output_gradient + queries * dim;
    kept = weights_gradient + weights_size;
    lanes = kept + weights_size;
    upcast_key = lanes + (many ? kLanes * dim : 0);
    const int64_t upcast = many && call.type != DataType::float32 ? call.prefix * dim : 0;
    upcast_value = upcast_key + upcast;
    const int64_t summed = queries < call.streams ? call.prefix * dim : 0;
    prefix_key_sum = upcast_value + upcast;
    prefix_value_sum = prefix_key_sum + summed;
    end = prefix_value_sum + summed;
  }

  // Numbers that all of it takes.
  static int64_t size(const AttentionCall& call) {
    const AttentionWorkspace from_zero(call, nullptr);
    return from_zero.end - from_zero.query;
  }
};

}  // namespace plr_kernels
