// Sums over streams: the gradients w.r.t. keys and values, Σ_m weight[m, e] left[m].
#pragma once

#include <cstdint>

#include "rows.h"
#include "weights.h"

namespace plr_kernels {
namespace {

// How sums over streams become rows of the result.
enum class Sums {
  stored,      // they are the rows
  past_cache,  // the same, written past the caches: the rows are whole cache lines of float32
  added        // they are added to the rows, of float32 in whole Vectors, one stream after the other
};

// Rows e of the result [entries, dim]: Σ_m weights[m, e] left[m], Entries x Vectors Vectors of it.
template <DataType type, Sums sums, int Entries, int Vectors, class Weights>
inline void outer_tile(int64_t streams, const Weights& weights, const float* left, int64_t left_stride,
                       int64_t column, int64_t dim, char* target, int64_t target_stride) {
  Vector tile[Entries][Vectors];
#pragma GCC unroll 4
  for (int i = 0; i < Entries; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      const float* row = reinterpret_cast<const float*>(target + i * target_stride);
      tile[i][j] = sums == Sums::added ? load(row + column + j * kLanes) : zero();
    }
  }
  for (int64_t m = 0; m < streams; ++m) {
    Vector from_left[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) from_left[j] = load(left + m * left_stride + column + j * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < Entries; ++i) {
      const Vector weight = broadcast(weights.at(m, i));
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) tile[i][j] = multiply_add(weight, from_left[j], tile[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Entries; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      char* row = target + i * target_stride;
      if constexpr (sums == Sums::past_cache) {
        store_past_cache(reinterpret_cast<float*>(row) + column + j * kLanes, tile[i][j]);
      } else if constexpr (sums == Sums::added) {
        store(reinterpret_cast<float*>(row) + column + j * kLanes, tile[i][j]);
      } else {
        store_columns<type>(row, column + j * kLanes, dim, tile[i][j]);
      }
    }
  }
}

// Columns from `column` on, Vectors Vectors at a time, then half as many, down to one.
template <DataType type, Sums sums, int Entries, int Vectors, class Weights>
inline void outer_columns(int64_t streams, const Weights& weights, const float* left, int64_t left_stride,
                          int64_t column, int64_t dim, char* target, int64_t target_stride) {
  constexpr int64_t least = Vectors == 1 ? 1 : Vectors * kLanes;  // columns
  for (; column + least <= dim; column += Vectors * kLanes) {
    outer_tile<type, sums, Entries, Vectors>(streams, weights, left, left_stride, column, dim, target, target_stride);
  }
  if constexpr (Vectors > 1) {
    outer_columns<type, sums, Entries, Vectors / 2>(streams, weights, left, left_stride, column, dim, target,
                                                    target_stride);
  }
}

// All columns of at most Entries rows of the result.
template <DataType type, Sums sums, int Entries = kDotEntries, class Weights>
inline void outer_rows(int64_t entries, int64_t streams, const Weights& weights, const float* left, int64_t left_stride,
                       int64_t dim, char* target, int64_t target_stride) {
  if constexpr (Entries > 1) {
    if (entries < Entries) {
      outer_rows<type, sums, Entries - 1>(entries, streams, weights, left, left_stride, dim, target, target_stride);
      return;
    }
  }
  outer_columns<type, sums, Entries, kSumVectors>(streams, weights, left, left_stride, 0, dim, target, target_stride);
}

// Writes the gradient w.r.t. the prefix entries of (b, h) in `tensor`, kDotEntries rows at a time, by
// write(e, rows, target), and zeros from `length` on. Nothing of (b, h) is read from memory meanwhile, so the entries of
// the next one are, where the call is too large for the caches.
template <DataType type, Sums sums, class Write>
inline void write_prefix_gradient(const AttentionCall& call, const Strided& tensor, const BatchHead& batch_head,
                                  void* gradient, const Write& write) {
  const int64_t row_bytes = call.dim * bytes_of(type), length = batch_head.length(call);
  const BatchHead next = batch_head.next(call);
  const Source next_rows = rows_of(call, tensor, next);
  const int64_t fetched = smaller(length, next.length(call));
  char* target = static_cast<char*>(gradient) + batch_head.number * call.prefix * row_bytes;
  for (int64_t e = 0; e < length; e += kDotEntries) {
    if constexpr (sums == Sums::past_cache) {
      for (int64_t row = e; row < smaller(e + kDotEntries, fetched); ++row) fetch_early(next_rows.row(row), row_bytes);
    }
    write(e, smaller(kDotEntries, length - e), target + e * row_bytes);
  }
  __builtin_memset(target + length * row_bytes, 0, (call.prefix - length) * row_bytes);
}

// The gradient w.r.t. the prefix entries where one block has all queries: Σ_m weights[m, e] left[m].
template <DataType type, Sums sums, class Weights>
inline void prefix_gradient(const AttentionCall& call, const Strided& tensor, const QueryBlock& block,
                            const Weights& weights, const float* left, int64_t left_stride, void* gradient) {
  write_prefix_gradient<type, sums>(
      call, tensor, block.batch_head, gradient, [&](int64_t e, int64_t rows, char* target) {
        outer_rows<type, sums>(rows, block.count, weights.from(0, e), left, left_stride, call.dim, target,
                               call.dim * bytes_of(type));
      });
}

// Adds a block's part of it to `total` [P, total_stride]. The first queries of ascending lengths do not see the last
// entries.
template <class Weights>
inline void add_prefix_gradient(const AttentionCall& call, const QueryBlock& block, const Weights& weights,
                                const float* left, int64_t left_stride, float* total, int64_t total_stride) {
  int64_t first = 0;
  for (int64_t e = 0; e < block.length; e += kDotEntries) {
    while (block.length_of(call, first) <= e) ++first;
    outer_rows<DataType::float32, Sums::added>(
        smaller(kDotEntries, block.length - e), block.count - first, weights.from(first, e), left + first * left_stride,
        left_stride, total_stride, reinterpret_cast<char*>(total + e * total_stride),
        total_stride * static_cast<int64_t>(sizeof(float)));
  }
}

// The gradient w.r.t. the prefix entries from the sum over all blocks.
template <DataType type, Sums sums>
inline void store_prefix_gradient(const AttentionCall& call, const Strided& tensor, const BatchHead& batch_head,
                                  const float* total, int64_t total_stride, void* gradient) {
  const int64_t row_bytes = call.dim * bytes_of(type);
  write_prefix_gradient<type, sums>(
      call, tensor, batch_head, gradient, [&](int64_t e, int64_t rows, char* target) {
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t column = 0; column < call.dim; column += kLanes) {
            const Vector values = load(total + (e + i) * total_stride + column);
            if constexpr (sums == Sums::past_cache) {
              store_past_cache(reinterpret_cast<float*>(target + i * row_bytes) + column, values);
            } else {
              store_columns<type>(target + i * row_bytes, column, call.dim, values);
            }
          }
        }
      });
}

// The gradient w.r.t. the suffixes of a block: weights[m, s] left[m].
template <DataType type, Sums sums, class Weights>
inline void suffix_gradient(const AttentionCall& call, const QueryBlock& block, const Weights& weights,
                            const float* left, int64_t left_stride, void* gradient) {
  const int64_t row_bytes = call.dim * bytes_of(type);
  char* target = static_cast<char*>(gradient) + block.first_row(call) * call.suffix * row_bytes;
  for (int64_t m = 0; m < block.count; ++m) {
    for (int64_t s = 0; s < call.suffix; ++s) {
      outer_rows<type, sums, 1>(1, 1, weights.from(m, s), left + m * left_stride, left_stride, call.dim, target,
                                row_bytes);
      target += row_bytes;
    }
  }
}

// The gradients w.r.t. the suffixes of a block that are wanted: those of keys, ds q, and of values, c p · output gradient.
template <DataType type, Sums sums, class Weights>
inline void suffix_gradients(const AttentionCall& call, const QueryBlock& block, const AttentionWorkspace& space,
                             const Weights& scores, const Weights& kept, int64_t suffix_start,
                             const AttentionGradients& wanted) {
  if (wanted.stream_key != nullptr) {
    suffix_gradient<type, sums>(call, block, scores.from(0, suffix_start), space.query, space.dim, wanted.stream_key);
  }
  if (wanted.stream_value != nullptr) {
    suffix_gradient<type, sums>(call, block, kept.from(0, suffix_start), space.output_gradient, space.dim,
                                wanted.stream_value);
  }
}

}  // namespace
}  // namespace plr_kernels
