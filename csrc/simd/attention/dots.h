// Scores: dot products of streams' rows (queries, or gradients of the output) with prefix entries and suffix entries.
#pragma once

#include <cstdint>

#include "rows.h"

namespace plr_kernels {
namespace {

// Lane by lane, the products of Streams rows of `left` with the given rows, summed over the columns. With each of their
// columns, fetches what lies `fetched_step` times as far from `fetched`.
template <DataType type, int Streams, int Entries>
inline void dot_tile(const float* left, int64_t left_stride, const char* const* rows, const char* const* fetched,
                     int64_t fetched_step, int64_t dim, Vector* sums, int sums_stride) {
  Vector tile[Streams][Entries];
#pragma GCC unroll 4
  for (int i = 0; i < Streams; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Entries; ++j) tile[i][j] = zero();
  }
  int64_t column = 0;
  for (; column + kLanes <= dim; column += kLanes) {
    Vector from_rows[Entries];
#pragma GCC unroll 4
    for (int j = 0; j < Entries; ++j) {
      from_rows[j] = load_columns<type>(rows[j], column);
      fetch(fetched[j] + fetched_step * column * bytes_of(type));
    }
#pragma GCC unroll 4
    for (int i = 0; i < Streams; ++i) {
      const Vector from_left = load(left + i * left_stride + column);
#pragma GCC unroll 4
      for (int j = 0; j < Entries; ++j) tile[i][j] = multiply_add(from_left, from_rows[j], tile[i][j]);
    }
  }
  if (column < dim) {
#pragma GCC unroll 4
    for (int j = 0; j < Entries; ++j) {
      const Vector from_row = load_last_columns<type>(rows[j], column, dim - column);
#pragma GCC unroll 4
      for (int i = 0; i < Streams; ++i) {
        tile[i][j] = multiply_add(load(left + i * left_stride + column), from_row, tile[i][j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Streams; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Entries; ++j) sums[i * sums_stride + j] = tile[i][j];
  }
}

// products[i, e] = factor · ⟨left[i], row e⟩ for Streams rows of `left` and the first `entries` rows; `first_visit`
// says that they have not been read before.
template <DataType type, int Streams>
inline void dots_of_streams(const float* left, int64_t left_stride, const Rows& rows, int64_t entries, bool first_visit,
                            int64_t dim, float factor, float* products, int64_t products_stride) {
  // 16 sums over lanes at a time: so many entries of each stream.
  constexpr int kEntries = Streams == 1 ? 16 : Streams == 2 ? 8 : 4;
  constexpr int kInTile = kDotEntries;
  for (int64_t first = 0; first < entries; first += kEntries) {
    const int64_t in_group = smaller(kEntries, entries - first);
    Vector sums[kLanes];
    if constexpr (Streams * kEntries < kLanes) {
      for (int i = Streams * kEntries; i < kLanes; ++i) sums[i] = zero();
    }
#pragma GCC unroll 16
    for (int e = 0; e < kEntries; e += kInTile) {
      const char *tile_rows[kInTile], *fetched[kInTile];
      const int64_t first_entry = smaller(first + e, entries - 1);
      // Line after line where that can be: memory answers sooner than to one line of each row in turn.
      const bool in_one = first_visit && rows.fetched_in_one(first_entry, kInTile, dim * bytes_of(type));
#pragma GCC unroll 4
      for (int j = 0; j < kInTile; ++j) {
        const int64_t entry = smaller(first_entry + j, entries - 1);
        tile_rows[j] = rows.source.row(entry);
        fetched[j] = in_one        ? rows.fetched_from(first_entry).data + j * kLanes * bytes_of(type)
                     : first_visit ? rows.fetched_from(entry).data
                                   : tile_rows[j];
      }
      dot_tile<type, Streams, kInTile>(left, left_stride, tile_rows, fetched, in_one ? kInTile : 1, dim, sums + e,
                                       kEntries);
    }
    alignas(64) float numbers[kLanes];
    store(numbers, sums_of_lanes(sums) * broadcast(factor));
    if (in_group == kEntries) {
#pragma GCC unroll 4
      for (int i = 0; i < Streams; ++i) {
        __builtin_memcpy(products + i * products_stride + first, numbers + i * kEntries, kEntries * sizeof(float));
      }
    } else {
      for (int i = 0; i < Streams; ++i) {
        for (int64_t e = first; e < entries; ++e) {
          products[i * products_stride + e] = numbers[i * kEntries + e - first];
        }
      }
    }
  }
}

// As dots_of_streams, for at most Streams rows of `left`.
template <DataType type, int Streams = kStreamTile>
inline void dots_of_tile(int64_t streams, const float* left, int64_t left_stride, const Rows& rows, int64_t entries,
                         bool first_visit, int64_t dim, float factor, float* products, int64_t products_stride) {
  if constexpr (Streams > 1) {
    if (streams < Streams) {
      dots_of_tile<type, Streams - 1>(streams, left, left_stride, rows, entries, first_visit, dim, factor, products,
                                      products_stride);
      return;
    }
  }
  dots_of_streams<type, Streams>(left, left_stride, rows, entries, first_visit, dim, factor, products, products_stride);
}

// products[m, e] = factor · ⟨left[m], row e⟩ for all streams of a block and all prefix entries that it sees.
template <DataType type>
inline void prefix_dots(int64_t streams, const float* left, int64_t left_stride, const Rows& rows, int64_t dim,
                        float factor, float* products, int64_t products_stride) {
  for (int64_t first = 0; first < rows.count; first += kEntryBlock) {
    const Rows block = rows.from(first);
    for (int64_t m = 0; m < streams; m += kStreamTile) {
      dots_of_tile<type>(smaller(kStreamTile, streams - m), left + m * left_stride, left_stride, block,
                         smaller(kEntryBlock, block.count), m == 0, dim, factor, products + m * products_stride + first,
                         products_stride);
    }
  }
}

// products[m, s] = factor · ⟨left[m], suffix entry s of stream m⟩ for the streams of a block.
template <DataType type>
inline void suffix_dots(const AttentionCall& call, const Strided& tensor, const QueryBlock& block, const float* left,
                        int64_t left_stride, float factor, float* products, int64_t products_stride) {
  const Source streams = rows_of(call, tensor, block);
  const int64_t ahead = to_next_block(call, tensor, block);
  const int64_t count = block.count * call.suffix;
  int64_t stream = 0, entry = 0;
  for (int64_t first = 0; first < count; first += kLanes) {
    const int64_t in_group = smaller(kLanes, count - first);
    Vector sums[kLanes];
    float* targets[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      if (i >= in_group) {
        sums[i] = zero();
        continue;
      }
      const char* row = entries_of(call, tensor, streams, stream).row(entry);
      const char* next_row = row + ahead;
      dot_tile<type, 1, 1>(left + stream * left_stride, left_stride, &row, &next_row, 1, call.dim, sums + i, 1);
      targets[i] = products + stream * products_stride + entry;
      if (++entry == call.suffix) {
        entry = 0;
        ++stream;
      }
    }
    alignas(64) float numbers[kLanes];
    store(numbers, sums_of_lanes(sums) * broadcast(factor));
    for (int64_t i = 0; i < in_group; ++i) *targets[i] = numbers[i];
  }
}

}  // namespace
}  // namespace plr_kernels
