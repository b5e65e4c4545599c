// Attention of one pair (b, h) of stream_attention, in terms of Vector (attention.h has the formulas). Part of
// kernels_implementation.h, and included there only.
//
// Keys and values are read from where they lie and raised to float32 on the way: prefix entries once for all streams,
// in blocks that stay in the cache while one group of streams after the other visits them.
#pragma once

#include <cstdint>

#include "../attention.h"

namespace {

using plr_kernels::AttentionCall;
using plr_kernels::AttentionGradients;
using plr_kernels::AttentionWorkspace;
using plr_kernels::Dropout;
using plr_kernels::Strided;

constexpr int64_t kEntryBlock = 64;

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// How many bytes before their use rows are fetched: memory needs the time of some twelve rows of 512 bytes to answer, and
// what comes much earlier has left the first-level cache when it is needed.
constexpr int64_t kFetchAhead = 6 * 1024;
constexpr int64_t kCacheLine = 64;

// Rows of numbers, `stride` bytes apart.
struct Source {
  const char* data;
  int64_t stride;

  const char* row(int64_t index) const { return data + index * stride; }
  Source from(int64_t index) const { return {row(index), stride}; }
};

// Both inlined always: of a function that returns nothing and writes nothing GCC drops the call.
__attribute__((always_inline)) inline void fetch(const char* address) { __builtin_prefetch(address, 0, 3); }
__attribute__((always_inline)) inline void fetch(const char* data, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kCacheLine) fetch(data + offset);
}
// What is used so much later that only the second-level cache still has it then.
__attribute__((always_inline)) inline void fetch_early(const char* data, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kCacheLine) __builtin_prefetch(data + offset, 0, 2);
}
// Memory that will be written. Stores wait for their line one after the other, and what reads newer stores waits too.
__attribute__((always_inline)) inline void fetch_for_writing(const char* data, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kCacheLine) __builtin_prefetch(data + offset, 1, 3);
}

// Rows that are about to be read, and those that will be read next. A pair's rows are few and soon over, too soon for the
// CPU to see by itself where reading goes on: so whoever uses a row fetches the one that comes `distance` <= `count` rows
// later. There are at least as many next rows.
struct Rows {
  Source source;
  int64_t count;
  Source next;
  int64_t distance;

  // How many rows from the first on have the ones to be fetched among themselves.
  int64_t before_next() const { return larger(count - distance, 0); }
  // The rows to be fetched from row `index` on, which is either below before_next() or not.
  Source fetched_from(int64_t index) const {
    return index < before_next() ? source.from(index + distance) : next.from(index + distance - count);
  }
  // Whether the rows to be fetched from row `index` on, `rows` of them with `row_bytes` each, lie one behind the other.
  bool fetched_in_one(int64_t index, int64_t rows, int64_t row_bytes) const {
    const bool in_next = index >= before_next();
    return (in_next ? next : source).stride == row_bytes && (in_next || index + rows <= before_next());
  }
  Rows from(int64_t index) const { return {source.from(index), count - index, next, distance}; }
};

// The pair (b, h) with the number b · H + h.
struct Pair {
  int64_t number, batch, head;

  Pair(const AttentionCall& call, int64_t number)
      : number(number), batch(number / call.heads), head(number % call.heads) {}

  // The next one, or the last again.
  Pair next(const AttentionCall& call) const {
    Pair result = *this;
    if (number + 1 == call.batch * call.heads) return result;
    ++result.number;
    if (++result.head == call.heads) {
      result.head = 0;
      ++result.batch;
    }
    return result;
  }
  int64_t length(const AttentionCall& call) const {
    return call.lengths == nullptr ? call.prefix : call.lengths[batch];
  }
};

// The rows of one pair: streams or prefix entries.
inline Source rows_of(const AttentionCall& call, const Strided& tensor, const Pair& pair) {
  const int64_t bytes = plr_kernels::bytes_of(call.type);
  const int64_t offset = pair.batch * tensor.batch_stride + pair.head * tensor.head_stride;
  return {static_cast<const char*>(tensor.data) + offset * bytes, tensor.row_stride * bytes};
}

// From a number of a pair to the same number of the next pair, in bytes.
inline int64_t to_next_pair(const AttentionCall& call, const Strided& tensor, const Pair& pair) {
  return rows_of(call, tensor, pair.next(call)).data - rows_of(call, tensor, pair).data;
}

// The prefix entries of a pair in `tensor`; those of `next_pair` in `next` are read after them.
inline Rows prefix_rows(const AttentionCall& call, const Strided& tensor, const Pair& pair, const Strided& next,
                        const Pair& next_pair) {
  const int64_t count = pair.length(call);
  const int64_t row_bytes = call.dim * plr_kernels::bytes_of(call.type);
  return {rows_of(call, tensor, pair),
          count,
          rows_of(call, next, next_pair),
          smaller(count, (kFetchAhead + row_bytes - 1) / row_bytes)};
}

// The entries of one stream, given the rows of the pair.
inline Source entries_of(const AttentionCall& call, const Strided& tensor, Source streams, int64_t stream) {
  return {streams.row(stream), tensor.entry_stride * plr_kernels::bytes_of(call.type)};
}

template <DataType type>
inline Vector load_columns(const char* row, int64_t column) {
  return load_raised(row, type, column);
}

// The last `count` < 16 columns of a row, and zeros.
template <DataType type>
inline Vector load_last_columns(const char* row, int64_t column, int64_t count) {
  if constexpr (type == DataType::float32) {
    return load_first(reinterpret_cast<const float*>(row) + column, static_cast<int>(count));
  } else {
    uint16_t padded[kLanes] = {};
    __builtin_memcpy(padded, row + column * 2, count * 2);
    return load_raised(padded, type, 0);
  }
}

template <DataType type>
inline void store_columns(char* row, int64_t column, int64_t dim, Vector values) {
  if (dim - column >= kLanes) {
    store_lowered(row, type, column, values);
    return;
  }
  const int64_t bytes = plr_kernels::bytes_of(type);
  alignas(64) char padded[kLanes * sizeof(float)];
  store_lowered(padded, type, 0, values);
  __builtin_memcpy(row + column * bytes, padded, (dim - column) * bytes);
}

// The rows of all streams of a pair to float32, zero beyond D; fetches those of the next pair.
template <DataType type>
inline void raise_rows(const AttentionCall& call, const Strided& tensor, const Pair& pair, float* target,
                       int64_t target_stride) {
  const Source source = rows_of(call, tensor, pair);
  const int64_t count = call.streams, dim = call.dim, ahead = to_next_pair(call, tensor, pair);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t column = 0; column < dim; column += kLanes) {
      const int64_t left = dim - column;
      store(target + i * target_stride + column,
            left >= kLanes ? load_columns<type>(source.row(i), column)
                           : load_last_columns<type>(source.row(i), column, left));
    }
    fetch(source.row(i) + ahead, dim * plr_kernels::bytes_of(type));
  }
}

// ------------------------------------------------------------------------------------------ products with rows

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
      fetch(fetched[j] + fetched_step * column * plr_kernels::bytes_of(type));
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

// products[i, e] = factor · ⟨left[i], row e⟩ for Streams rows of `left` and the first `entries` rows; `first_visit` says
// that they have not been read before.
template <DataType type, int Streams>
inline void dots_of_streams(const float* left, int64_t left_stride, const Rows& rows, int64_t entries,
                            bool first_visit, int64_t dim, float factor, float* products, int64_t products_stride) {
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
      const bool in_one = first_visit && rows.fetched_in_one(first_entry, kInTile, dim * plr_kernels::bytes_of(type));
#pragma GCC unroll 4
      for (int j = 0; j < kInTile; ++j) {
        const int64_t entry = smaller(first_entry + j, entries - 1);
        tile_rows[j] = rows.source.row(entry);
        fetched[j] = in_one        ? rows.fetched_from(first_entry).data + j * kLanes * plr_kernels::bytes_of(type)
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

// As dots_of_streams, for any number of rows of `left`.
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
  dots_of_streams<type, Streams>(left, left_stride, rows, entries, first_visit, dim, factor, products,
                                 products_stride);
}

template <DataType type>
inline void prefix_dots(int64_t streams, const float* left, int64_t left_stride, const Rows& rows, int64_t dim,
                        float factor, float* products, int64_t products_stride) {
  for (int64_t first = 0; first < rows.count; first += kEntryBlock) {
    const Rows block = rows.from(first);
    for (int64_t m = 0; m < streams; m += kStreamTile) {
      dots_of_tile<type>(smaller(kStreamTile, streams - m), left + m * left_stride, left_stride, block,
                         smaller(kEntryBlock, block.count), m == 0, dim, factor,
                         products + m * products_stride + first, products_stride);
    }
  }
}

// products[m, s] = factor · ⟨left[m], entry s of stream m⟩.
template <DataType type>
inline void own_dots(const AttentionCall& call, const Strided& tensor, const Pair& pair, const float* left,
                     int64_t left_stride, float factor, float* products, int64_t products_stride) {
  const Source streams = rows_of(call, tensor, pair);
  const int64_t ahead = to_next_pair(call, tensor, pair);
  const int64_t count = call.streams * call.own;
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
      if (++entry == call.own) {
        entry = 0;
        ++stream;
      }
    }
    alignas(64) float numbers[kLanes];
    store(numbers, sums_of_lanes(sums) * broadcast(factor));
    for (int64_t i = 0; i < in_group; ++i) *targets[i] = numbers[i];
  }
}

// ------------------------------------------------------------------------------------------ weighted sums of rows

// The entries of each stream's own, [i, s] with the weights [i, s].
struct OwnEntries {
  Source streams;
  int64_t entry_stride;
  int64_t count;
  const float* weights;
  int64_t ahead;  // bytes to those of the next pair, to be fetched; 0: none are

  OwnEntries from(int64_t stream, int64_t weights_stride) const {
    return {streams.from(stream), entry_stride, count, weights + stream * weights_stride, ahead};
  }
};

// sums[i] = Σ_s of its own entries + Σ_e weights[i, e] row e, for Streams rows of weights and Vectors Vectors from
// `column` on; with Last, one Vector of which `dim` leaves a part. Without own entries, the second sum is added to
// sums[i].
// `first_visit` says that the rows have not been read before.
template <DataType type, int Streams, int Vectors, bool Last>
inline void sum_tile(const float* weights, int64_t weights_stride, const Rows& rows, int64_t entries, bool first_visit,
                     const OwnEntries* own, int64_t column, int64_t dim, float* sums, int64_t sums_stride) {
  static_assert(!Last || Vectors == 1, "only the last Vector of a row is not whole");
  const int64_t start = column * plr_kernels::bytes_of(type);
  const auto vector_at = [&](const char* row, int j) {
    return Last ? load_last_columns<type>(row, 0, dim - column) : load_columns<type>(row, j * kLanes);
  };
  const auto fetch_at = [&](const char* row, int j) __attribute__((always_inline)) {
    fetch(row + j * kLanes * plr_kernels::bytes_of(type));
  };
  Vector tile[Streams][Vectors];
#pragma GCC unroll 4
  for (int i = 0; i < Streams; ++i) {
    if (own == nullptr) {
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) tile[i][j] = load(sums + i * sums_stride + column + j * kLanes);
      continue;
    }
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) tile[i][j] = zero();
    const char* row = own->streams.row(i);
    for (int64_t s = 0; s < own->count; ++s) {
      const Vector weight = broadcast(own->weights[i * weights_stride + s]);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        tile[i][j] = multiply_add(weight, vector_at(row + start, j), tile[i][j]);
        fetch_at(row + start + own->ahead, j);
      }
      row += own->entry_stride;
    }
  }
  // Whole rows are fetched at the first visit, which is that of the first columns.
  constexpr int64_t in_tile = Vectors * kLanes * plr_kernels::bytes_of(type);
  const int64_t row_bytes = first_visit ? dim * plr_kernels::bytes_of(type) : 0;
  const char* row = rows.source.data + start;
  for (int64_t e = 0; e < entries;) {
    const int64_t end = first_visit && e < rows.before_next() ? smaller(rows.before_next(), entries) : entries;
    const Source fetched = first_visit ? rows.fetched_from(e) : rows.source;
    const char* fetched_row = fetched.data + (first_visit ? 0 : start);
    for (; e < end; ++e) {
      Vector from_row[Vectors];
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        from_row[j] = vector_at(row, j);
        fetch_at(fetched_row, j);
      }
      for (int64_t offset = in_tile; offset < row_bytes; offset += kCacheLine) fetch(fetched_row + offset);
      fetched_row += fetched.stride;
#pragma GCC unroll 4
      for (int i = 0; i < Streams; ++i) {
        const Vector weight = broadcast(weights[i * weights_stride + e]);
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) tile[i][j] = multiply_add(weight, from_row[j], tile[i][j]);
      }
      row += rows.source.stride;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Streams; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) store(sums + i * sums_stride + column + j * kLanes, tile[i][j]);
  }
}

// Columns from `column` on that are less than a tile's: as many whole Vectors as there are, then the last part.
template <DataType type, int Streams, int Vectors>
inline void sum_last_columns(const float* weights, int64_t weights_stride, const Rows& rows, int64_t entries,
                             bool first_visit, const OwnEntries* own, int64_t column, int64_t dim, float* sums,
                             int64_t sums_stride) {
  if constexpr (Vectors == 0) {
    if (column < dim) {
      sum_tile<type, Streams, 1, true>(weights, weights_stride, rows, entries, first_visit, own, column, dim, sums,
                                       sums_stride);
    }
  } else if ((dim - column) / kLanes >= Vectors) {
    sum_tile<type, Streams, Vectors, false>(weights, weights_stride, rows, entries, first_visit, own, column, dim,
                                            sums, sums_stride);
    sum_last_columns<type, Streams, 0>(weights, weights_stride, rows, entries, false, own, column + Vectors * kLanes,
                                       dim, sums, sums_stride);
  } else {
    sum_last_columns<type, Streams, Vectors - 1>(weights, weights_stride, rows, entries, first_visit, own, column,
                                                 dim, sums, sums_stride);
  }
}

// All columns of at most Streams rows: first, where they are few enough streams, in wide tiles.
template <DataType type, int Streams = kStreamTile>
inline void sums_of_tile(int64_t streams, const float* weights, int64_t weights_stride, const Rows& rows,
                         int64_t entries, bool first_visit, const OwnEntries* own, int64_t dim, float* sums,
                         int64_t sums_stride) {
  if constexpr (Streams > 1) {
    if (streams < Streams) {
      sums_of_tile<type, Streams - 1>(streams, weights, weights_stride, rows, entries, first_visit, own, dim, sums,
                                      sums_stride);
      return;
    }
  }
  int64_t column = 0;
  if constexpr (Streams <= kWideStreams && kWideVectors > kSumVectors) {
    for (; column + kWideVectors * kLanes <= dim; column += kWideVectors * kLanes) {
      sum_tile<type, Streams, kWideVectors, false>(weights, weights_stride, rows, entries,
                                                   first_visit && column == 0, own, column, dim, sums, sums_stride);
    }
  }
  for (; column + kSumVectors * kLanes <= dim; column += kSumVectors * kLanes) {
    sum_tile<type, Streams, kSumVectors, false>(weights, weights_stride, rows, entries, first_visit && column == 0,
                                                own, column, dim, sums, sums_stride);
  }
  sum_last_columns<type, Streams, kSumVectors - 1>(weights, weights_stride, rows, entries, first_visit && column == 0,
                                                   own, column, dim, sums, sums_stride);
}

// sums[m] = Σ over the prefix entries and over the stream's own of weight · row. `first_visit` says that neither have
// been read before.
template <DataType type>
inline void weighted_sums(const AttentionCall& call, const Rows& rows, const Strided& own, const Pair& pair,
                          bool first_visit, const float* weights, int64_t weights_stride, float* sums,
                          int64_t sums_stride) {
  const OwnEntries all_own{rows_of(call, own, pair), own.entry_stride * plr_kernels::bytes_of(type), call.own,
                           weights + plr_kernels::round_up(rows.count, kLanes),
                           first_visit ? to_next_pair(call, own, pair) : 0};
  // Rows that are read as a whole come faster: few streams at a time where that lets all columns be in registers.
  const int64_t tile = call.dim >= kWideVectors * kLanes ? kWideStreams : kStreamTile;
  int64_t first = 0;
  do {  // once even where there is no prefix
    const Rows block = rows.from(first);
    for (int64_t m = 0; m < call.streams; m += tile) {
      const OwnEntries own_entries = all_own.from(m, weights_stride);
      sums_of_tile<type>(smaller(tile, call.streams - m), weights + m * weights_stride + first, weights_stride, block,
                         smaller(kEntryBlock, block.count), first_visit && m == 0, first == 0 ? &own_entries : nullptr,
                         call.dim, sums + m * sums_stride, sums_stride);
    }
    first += kEntryBlock;
  } while (first < rows.count);
}

// ------------------------------------------------------------------------------------------ sums over streams

// Rows [entries, dim] of the result: row e = Σ_m weights[m, e] left[m], Entries x Vectors Vectors of it. With `past_cache`
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
    outer_tile<type, past_cache, Entries, kSumVectors>(streams, weights, weights_stride, left, left_stride, column,
                                                       dim, target, target_stride);
  }
  for (; column < dim; column += kLanes) {
    outer_tile<type, past_cache, Entries, 1>(streams, weights, weights_stride, left, left_stride, column, dim, target,
                                             target_stride);
  }
}

// The gradient of the pair's prefix entries in `tensor`: Σ_m weights[m, e] left[m], and zeros from `length` on. Nothing of
// the pair is read from memory meanwhile, so the next pair's entries are, where the call is too large for the caches.
template <DataType type, bool past_cache>
inline void prefix_gradient(const AttentionCall& call, const Strided& tensor, const Pair& pair, const float* weights,
                            int64_t weights_stride, const float* left, int64_t left_stride, void* gradient) {
  const int64_t row_bytes = call.dim * plr_kernels::bytes_of(type), length = pair.length(call);
  const Pair next = pair.next(call);
  const Source next_rows = rows_of(call, tensor, next);
  const int64_t fetched = smaller(length, next.length(call));
  char* target = static_cast<char*>(gradient) + pair.number * call.prefix * row_bytes;
  for (int64_t e = 0; e < length; e += kDotEntries) {
    if constexpr (past_cache) {
      for (int64_t row = e; row < smaller(e + kDotEntries, fetched); ++row) fetch_early(next_rows.row(row), row_bytes);
    }
    outer_rows<type, past_cache>(smaller(kDotEntries, length - e), call.streams, weights + e, weights_stride, left,
                                 left_stride, call.dim, target + e * row_bytes, row_bytes);
  }
  __builtin_memset(target + length * row_bytes, 0, (call.prefix - length) * row_bytes);
}

// The gradient of the streams' own entries: weights[m, s] left[m].
template <DataType type, bool past_cache>
inline void own_gradient(const AttentionCall& call, int64_t pair, const float* weights, int64_t weights_stride,
                         const float* left, int64_t left_stride, void* gradient) {
  const int64_t row_bytes = call.dim * plr_kernels::bytes_of(type);
  char* target = static_cast<char*>(gradient) + pair * call.streams * call.own * row_bytes;
  for (int64_t m = 0; m < call.streams; ++m) {
    for (int64_t s = 0; s < call.own; ++s) {
      outer_rows<type, past_cache, 1>(1, 1, weights + m * weights_stride + s, weights_stride, left + m * left_stride,
                                      left_stride, call.dim, target, row_bytes);
      target += row_bytes;
    }
  }
}

// ------------------------------------------------------------------------------------------ dropout

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011) for 16 counters; words[lane][4].
inline void philox(uint32_t (&counter)[4][kLanes], uint64_t seed, uint32_t (&words)[kLanes][4]) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t product0 = uint64_t{0xD2511F53} * counter[0][lane];
      const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2][lane];
      counter[0][lane] = static_cast<uint32_t>(product1 >> 32) ^ counter[1][lane] ^ key0;
      counter[1][lane] = static_cast<uint32_t>(product1);
      counter[2][lane] = static_cast<uint32_t>(product0 >> 32) ^ counter[3][lane] ^ key1;
      counter[3][lane] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int word = 0; word < 4; ++word) words[lane][word] = counter[word][lane];
  }
}

// The random words of all entries of a pair, laid out as their weights.
inline void draw_words(const AttentionCall& call, int64_t pair, int64_t length, uint32_t* words, int64_t row_size) {
  uint32_t counter[4][kLanes] = {};
  uint32_t drawn[kLanes][4];
  uint32_t* targets[kLanes];
  int waiting = 0;
  const auto draw = [&] {
    philox(counter, call.dropout->seed, drawn);
    for (int i = 0; i < waiting; ++i) __builtin_memcpy(targets[i], drawn[i], sizeof(drawn[i]));
    waiting = 0;
  };
  for (int64_t m = 0; m < call.streams; ++m) {
    const uint64_t row = static_cast<uint64_t>(pair * call.streams + m);
    const int64_t starts[2] = {0, plr_kernels::round_up(length, kLanes)};
    const int64_t sizes[2] = {length, call.own};
    for (uint32_t part = 0; part < 2; ++part) {
      for (int64_t entry = 0; entry < sizes[part]; entry += 4) {
        counter[0][waiting] = static_cast<uint32_t>(entry / 4);
        counter[1][waiting] = static_cast<uint32_t>(row);
        counter[2][waiting] = static_cast<uint32_t>(row >> 32);
        counter[3][waiting] = part;
        targets[waiting] = words + m * row_size + starts[part] + entry;
        if (++waiting == kLanes) draw();
      }
    }
  }
  if (waiting > 0) draw();
}

// The entries that dropout keeps, the others zero, times `factor`.
inline Vector dropped(const Dropout& dropout, Vector values, const uint32_t* words, Vector factor) {
  const Vector scaled = values * factor;
  if (dropout.threshold == 0) return scaled;
  return where_above(words, static_cast<uint32_t>(dropout.threshold - 1), scaled);
}

// ------------------------------------------------------------------------------------------ softmax

// Sets what both parts of every row have beyond their entries to fill whole Vectors (and some entries, yet to come).
inline void fill_up(const AttentionCall& call, int64_t length, float value, float* rows, int64_t row_size) {
  const int64_t own = plr_kernels::round_up(length, kLanes), end = own + plr_kernels::round_up(call.own, kLanes);
  for (int64_t m = 0; m < call.streams; ++m) {
    if (length < own) store(rows + m * row_size + own - kLanes, broadcast(value));
    if (own + call.own < end) store(rows + m * row_size + end - kLanes, broadcast(value));
  }
}

// Scores of `size` > 0 entries, a multiple of 16, times log2(e) -> exp2(score − largest); their sum is returned.
inline float exponentials(float* scores, int64_t size, float* largest_score) {
  Vector largest = load(scores);
  for (int64_t e = kLanes; e < size; e += kLanes) largest = maximum_of(load(scores + e), largest);
  *largest_score = largest_lane(largest);
  const Vector shift = broadcast(*largest_score);
  Vector sum = zero();
  for (int64_t e = 0; e < size; e += kLanes) {
    const Vector power = exp2(load(scores + e) - shift);
    store(scores + e, power);
    sum = sum + power;
  }
  return sum_of_lanes(sum);
}

// The scores of all streams of a pair, times log2(e), filled up with -inf. The prefix' values are read next.
template <DataType type>
inline void all_scores(const AttentionCall& call, const Pair& pair, int64_t length, const AttentionWorkspace& space) {
  const float factor = static_cast<float>(call.scale * plr_kernels::kLog2E);
  fill_up(call, length, -__builtin_inff(), space.weights, space.row_size);
  raise_rows<type>(call, call.query, pair, space.query, space.dim);
  prefix_dots<type>(call.streams, space.query, space.dim,
                    prefix_rows(call, call.prefix_key, pair, call.prefix_value, pair), call.dim, factor, space.weights,
                    space.row_size);
  own_dots<type>(call, call.stream_key, pair, space.query, space.dim, factor,
                 space.weights + plr_kernels::round_up(length, kLanes), space.row_size);
  if (call.dropout != nullptr) draw_words(call, pair.number, length, space.words, space.row_size);
}

// ------------------------------------------------------------------------------------------ one pair

template <DataType type>
void forward_of_pair(const AttentionCall& call, int64_t number, float* memory, void* output, float* log_sums) {
  const AttentionWorkspace space(call, memory);
  const Pair pair(call, number);
  const int64_t length = pair.length(call);
  const int64_t entries = plr_kernels::round_up(length, kLanes) + plr_kernels::round_up(call.own, kLanes);
  const int64_t row_bytes = call.dim * plr_kernels::bytes_of(type);
  char* target = static_cast<char*>(output) + number * call.streams * row_bytes;
  if (entries == 0) {  // nothing to attend to
    __builtin_memset(target, 0, call.streams * row_bytes);
    for (int64_t m = 0; log_sums != nullptr && m < call.streams; ++m) {
      log_sums[number * call.streams + m] = -__builtin_inff();
    }
    return;
  }
  fetch_for_writing(target, call.streams * row_bytes);
  all_scores<type>(call, pair, length, space);
  for (int64_t m = 0; m < call.streams; ++m) {
    float* row = space.weights + m * space.row_size;
    float largest;
    const float sum = exponentials(row, entries, &largest);
    if (log_sums != nullptr) log_sums[number * call.streams + m] = largest + __builtin_log2f(sum);
    space.factor[m] = 1.0f / sum;
    if (call.dropout == nullptr) continue;
    const Vector factor = broadcast(call.dropout->inverse_keep);
    for (int64_t e = 0; e < entries; e += kLanes) {
      store(row + e, dropped(*call.dropout, load(row + e), space.words + m * space.row_size + e, factor));
    }
  }
  weighted_sums<type>(call, prefix_rows(call, call.prefix_value, pair, call.prefix_key, pair.next(call)), call.stream_value,
                      pair, true, space.weights, space.row_size, space.output, space.dim);
  for (int64_t m = 0; m < call.streams; ++m) {
    const Vector factor = broadcast(space.factor[m]);
    for (int64_t column = 0; column < call.dim; column += kLanes) {
      store_columns<type>(target + m * row_bytes, column, call.dim,
                          load(space.output + m * space.dim + column) * factor);
    }
  }
}

// Softmax and its gradient: weights -> p, kept = c p, and where wanted weights_gradient -> ds.
inline void softmax_backward(const AttentionCall& call, int64_t entries, bool scores_wanted,
                             const AttentionWorkspace& space) {
  const Vector scale = broadcast(static_cast<float>(call.scale));
  for (int64_t m = 0; m < call.streams; ++m) {
    float* row = space.weights + m * space.row_size;
    float* gradient = space.weights_gradient + m * space.row_size;
    float* kept = space.kept + m * space.row_size;
    const uint32_t* words = space.words + m * space.row_size;
    float largest;
    const Vector inverse_sum = broadcast(1.0f / exponentials(row, entries, &largest));
    const Vector keep = broadcast(call.dropout == nullptr ? 1.0f : call.dropout->inverse_keep);
    for (int64_t e = 0; e < entries; e += kLanes) {
      const Vector p = load(row + e) * inverse_sum;
      store(row + e, p);
      store(kept + e, call.dropout == nullptr ? p : dropped(*call.dropout, p, words + e, keep));
    }
    if (!scores_wanted) continue;
    Vector mean = zero();  // Σ p g
    for (int64_t e = 0; e < entries; e += kLanes) {
      Vector g = load(gradient + e);
      if (call.dropout != nullptr) g = dropped(*call.dropout, g, words + e, keep);
      store(gradient + e, g);
      mean = multiply_add(load(row + e), g, mean);
    }
    const Vector expected = broadcast(sum_of_lanes(mean));
    for (int64_t e = 0; e < entries; e += kLanes) {
      store(gradient + e, load(row + e) * (load(gradient + e) - expected) * scale);
    }
  }
}

// The gradients of a pair's keys and values, from those of the scores and of the output.
template <DataType type, bool past_cache = false>
inline void entry_gradients(const AttentionCall& call, const Pair& pair, const AttentionWorkspace& space,
                            const AttentionGradients& wanted) {
  if constexpr (type == DataType::float32 && !past_cache) {
    if (wanted.past_cache) {
      entry_gradients<type, true>(call, pair, space, wanted);
      finish_stores_past_cache();
      return;
    }
  }
  const int64_t own = plr_kernels::round_up(pair.length(call), kLanes);
  if (wanted.prefix_key != nullptr) {
    prefix_gradient<type, past_cache>(call, call.prefix_key, pair, space.weights_gradient, space.row_size, space.query,
                                      space.dim, wanted.prefix_key);
  }
  if (wanted.prefix_value != nullptr) {
    prefix_gradient<type, past_cache>(call, call.prefix_value, pair, space.kept, space.row_size, space.output_gradient,
                                      space.dim, wanted.prefix_value);
  }
  if (wanted.stream_key != nullptr) {
    own_gradient<type, past_cache>(call, pair.number, space.weights_gradient + own, space.row_size, space.query,
                                   space.dim, wanted.stream_key);
  }
  if (wanted.stream_value != nullptr) {
    own_gradient<type, past_cache>(call, pair.number, space.kept + own, space.row_size, space.output_gradient,
                                   space.dim, wanted.stream_value);
  }
}

template <DataType type>
void backward_of_pair(const AttentionCall& call, int64_t number, float* memory, const Strided& output_gradient,
                      const AttentionGradients& wanted) {
  const AttentionWorkspace space(call, memory);
  const Pair pair(call, number);
  const int64_t length = pair.length(call);
  const int64_t own = plr_kernels::round_up(length, kLanes);
  const int64_t entries = own + plr_kernels::round_up(call.own, kLanes);
  const int64_t row_bytes = call.dim * plr_kernels::bytes_of(type);
  const bool scores_wanted = wanted.query != nullptr || wanted.prefix_key != nullptr || wanted.stream_key != nullptr;
  if (entries > 0) {
    raise_rows<type>(call, output_gradient, pair, space.output_gradient, space.dim);
    all_scores<type>(call, pair, length, space);
    if (scores_wanted) {
      fill_up(call, length, 0.0f, space.weights_gradient, space.row_size);
      prefix_dots<type>(call.streams, space.output_gradient, space.dim,
                        prefix_rows(call, call.prefix_value, pair, call.prefix_key, pair.next(call)), call.dim, 1.0f,
                        space.weights_gradient, space.row_size);
      own_dots<type>(call, call.stream_value, pair, space.output_gradient, space.dim, 1.0f,
                     space.weights_gradient + own, space.row_size);
    }
    softmax_backward(call, entries, scores_wanted, space);
  }
  if (wanted.query != nullptr) {
    char* target = static_cast<char*>(wanted.query) + number * call.streams * row_bytes;
    weighted_sums<type>(call, prefix_rows(call, call.prefix_key, pair, call.prefix_key, pair), call.stream_key, pair,
                        false, space.weights_gradient, space.row_size, space.output, space.dim);
    for (int64_t m = 0; m < call.streams; ++m) {
      for (int64_t column = 0; column < call.dim; column += kLanes) {
        store_columns<type>(target + m * row_bytes, column, call.dim, load(space.output + m * space.dim + column));
      }
    }
  }
  entry_gradients<type>(call, pair, space, wanted);
}

void attention_forward(const AttentionCall& call, int64_t pair, float* memory, void* output, float* log_sums) {
  switch (call.type) {
    case DataType::float16:
      return forward_of_pair<DataType::float16>(call, pair, memory, output, log_sums);
    case DataType::bfloat16:
      return forward_of_pair<DataType::bfloat16>(call, pair, memory, output, log_sums);
    default:
      return forward_of_pair<DataType::float32>(call, pair, memory, output, log_sums);
  }
}

void attention_backward(const AttentionCall& call, int64_t pair, float* memory, const Strided& output_gradient,
                        const AttentionGradients& wanted) {
  switch (call.type) {
    case DataType::float16:
      return backward_of_pair<DataType::float16>(call, pair, memory, output_gradient, wanted);
    case DataType::bfloat16:
      return backward_of_pair<DataType::bfloat16>(call, pair, memory, output_gradient, wanted);
    default:
      return backward_of_pair<DataType::float32>(call, pair, memory, output_gradient, wanted);
  }
}

}  // namespace
