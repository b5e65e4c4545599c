// Sums over streams: the gradients w.r.t. keys and values, Σ_m weight[m, e] left[m].
#pragma once

#include <cstdint>

#include "rows.h"

namespace plr_kernels {
namespace {

// Rows e of the result [entries, dim]: Σ_m weights[m, e] left[m], Entries x Vectors Vectors of it. With `past_cache`
// they are whole cache lines of float32.
template <DataType type, bool past_cache, int Entries, int Vectors>
inline void outer_tile(int64_t streams, const float* weights, int64_t weights_stride, const float* left,
                       int64_t left_stride, int64_t column, int64_t dim, char* target, int64_t target_stride) {
  Vector tile[Entries][Vectors];
#pragma GCC unroll 4
  for (int i = 0; i < Entries; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) tile[i][j] = zero();
  }
  for (int64_t m = 0; m < streams; ++m) {
    Vector from_left[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) from_left[j] = load(left + m * left_stride + column + j * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < Entries; ++i) {
      const Vector weight = broadcast(weights[m * weights_stride + i]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) tile[i][j] = multiply_add(weight, from_left[j], tile[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Entries; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      char* row = target + i * target_stride;
      if constexpr (past_cache) {
        store_past_cache(reinterpret_cast<float*>(row) + column + j * kLanes, tile[i][j]);
      } else {
        store_columns<type>(row, column + j * kLanes, dim, tile[i][j]);
      }
    }
  }
}

// All columns of at most Entries rows of the result.
template <DataType type, bool past_cache, int Entries = kDotEntries>
inline void outer_rows(int64_t entries, int64_t streams, const float* weights, int64_t weights_stride,
                       const float* left, int64_t left_stride, int64_t dim, char* target, int64_t target_stride) {
  if constexpr (Entries > 1) {
    if (entries < Entries) {
      outer_rows<type, past_cache, Entries - 1>(entries, streams, weights, weights_stride, left, left_stride, dim,
                                                target, target_stride);
      return;
    }
  }
  int64_t column = 0;
  for (; column + kSumVectors * kLanes <= dim; column += kSumVectors * kLanes) {
    outer_tile<type, past_cache, Entries, kSumVectors>(streams, weights, weights_stride, left, left_stride, column, dim,
                                                       target, target_stride);
  }
  for (; column < dim; column += kLanes) {
    outer_tile<type, past_cache, Entries, 1>(streams, weights, weights_stride, left, left_stride, column, dim, target,
                                             target_stride);
  }
}

// The gradient w.r.t. the prefix entries of (b, h) in `tensor`: Σ_m weights[m, e] left[m], and zeros from `length` on.
// Nothing of (b, h) is read from memory meanwhile, so the entries of the next one are, where the call is too large for
// the caches.
template <DataType type, bool past_cache>
inline void prefix_gradient(const AttentionCall& call, const Strided& tensor, const BatchHead& batch_head,
                            const float* weights, int64_t weights_stride, const float* left, int64_t left_stride,
                            void* gradient) {
  const int64_t row_bytes = call.dim * bytes_of(type), length = batch_head.length(call);
  const BatchHead next = batch_head.next(call);
  const Source next_rows = rows_of(call, tensor, next);
  const int64_t fetched = smaller(length, next.length(call));
  char* target = static_cast<char*>(gradient) + batch_head.number * call.prefix * row_bytes;
  for (int64_t e = 0; e < length; e += kDotEntries) {
    if constexpr (past_cache) {
      for (int64_t row = e; row < smaller(e + kDotEntries, fetched); ++row) fetch_early(next_rows.row(row), row_bytes);
    }
    outer_rows<type, past_cache>(smaller(kDotEntries, length - e), call.streams, weights + e, weights_stride, left,
                                 left_stride, call.dim, target + e * row_bytes, row_bytes);
  }
  __builtin_memset(target + length * row_bytes, 0, (call.prefix - length) * row_bytes);
}

// The gradient w.r.t. the suffixes in (b, h): weights[m, s] left[m].
template <DataType type, bool past_cache>
inline void suffix_gradient(const AttentionCall& call, int64_t number, const float* weights, int64_t weights_stride,
                            const float* left, int64_t left_stride, void* gradient) {
  const int64_t row_bytes = call.dim * bytes_of(type);
  char* target = static_cast<char*>(gradient) + number * call.streams * call.suffix * row_bytes;
  for (int64_t m = 0; m < call.streams; ++m) {
    for (int64_t s = 0; s < call.suffix; ++s) {
      outer_rows<type, past_cache, 1>(1, 1, weights + m * weights_stride + s, weights_stride, left + m * left_stride,
                                      left_stride, call.dim, target, row_bytes);
      target += row_bytes;
    }
  }
}

}  // namespace
}  // namespace plr_kernels
