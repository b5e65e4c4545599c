// Rows of one batch entry and head (b, h): where they lie, how they are read, written and fetched ahead of their use.
//
// Keys and values are read from where they lie and upcast to float32 on the way: prefix entries once for all streams of
// a block of queries, in blocks that stay in the cache while one group of streams after the other visits them.
#pragma once

#include <cstdint>

#include "../../attention.h"
#include "../common.h"
#include "../rows.h"

namespace plr_kernels {
namespace {

constexpr int64_t kEntryBlock = 64;  // prefix entries

// How many bytes before their use rows are fetched: memory needs the time of some twelve rows of 512 bytes to answer,
// and what comes much earlier has left the first-level cache when it is needed.
constexpr int64_t kFetchAhead = 6 * 1024;

// Rows of numbers, `stride` bytes apart.
struct Source {
  const char* data;
  int64_t stride;

  const char* row(int64_t index) const { return data + index * stride; }
  Source from(int64_t index) const { return {row(index), stride}; }
};

// All inlined always: GCC drops the call of a function that returns nothing and writes nothing.
__attribute__((always_inline)) inline void fetch(const char* address) { __builtin_prefetch(address, 0, 3); }
__attribute__((always_inline)) inline void fetch(const char* data, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kCacheLine) fetch(data + offset);
}
// What is used so much later that only the second-level cache still has it then.
__attribute__((always_inline)) inline void fetch_early(const char* data, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kCacheLine) __builtin_prefetch(data + offset, 0, 2);
}
// Memory that will be written. Stores wait for their line one after the other, and what reads newer stores waits too.
__attribute__((always_inline)) inline void fetch_for_writing(const char* address) { __builtin_prefetch(address, 1, 3); }
__attribute__((always_inline)) inline void fetch_for_writing(const char* data, int64_t bytes) {
  for (int64_t offset = 0; offset < bytes; offset += kCacheLine) fetch_for_writing(data + offset);
}

// Rows that are about to be read, and those that will be read next. The rows of one (b, h) are few and soon over, too
// soon for the CPU to see by itself where reading goes on: so whoever uses a row fetches the one that comes `distance`
// <= `count` rows later. There are at least as many next rows.
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

// Batch entry b and head h, numbered b · H + h.
struct BatchHead {
  int64_t number, batch, head;

  BatchHead(const AttentionCall& call, int64_t number)
      : number(number), batch(number / call.heads), head(number % call.heads) {}

  // The next one, or the last one again.
  BatchHead next(const AttentionCall& call) const {
    BatchHead result = *this;
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

// Consecutive queries of one (b, h) that are computed together.
struct QueryBlock {
  BatchHead batch_head;
  int64_t index;   // among the blocks of (b, h)
  int64_t first;   // number m of its first query
  int64_t count;   // of its queries
  int64_t length;  // the longest of them

  QueryBlock(const AttentionCall& call, const BatchHead& batch_head, int64_t index)
      : batch_head(batch_head), index(index), first(start(call, index)), count(start(call, index + 1) - first) {
    length = batch_head.length(call);
    if (call.query_lengths == nullptr) return;
    length = 0;
    for (int64_t i = 0; i < count; ++i) length = larger(length, length_of(call, i));
  }

  static int64_t blocks(const AttentionCall& call) {
    const int64_t most = queries_per_block(call);
    return (call.streams + most - 1) / most;
  }
  // Nearly as many queries in each block, in whole Vectors.
  static int64_t start(const AttentionCall& call, int64_t index) {
    const int64_t vectors = (call.streams + kLanes - 1) / kLanes;
    return smaller(call.streams, kLanes * (vectors * index / blocks(call)));
  }

  // The length of its query i.
  int64_t length_of(const AttentionCall& call, int64_t i) const {
    return call.query_lengths == nullptr ? length : call.query_lengths[batch_head.batch * call.streams + first + i];
  }
  // The longest of its queries [i, i + queries).
  int64_t longest_of(const AttentionCall& call, int64_t i, int64_t queries) const {
    if (call.query_lengths == nullptr) return length;
    int64_t longest = 0;
    for (int64_t other = i; other < smaller(i + queries, count); ++other) {
      longest = larger(longest, length_of(call, other));
    }
    return longest;
  }
  bool is_last(const AttentionCall& call) const { return first + count == call.streams; }
  // The number of its first query among those of the whole call.
  int64_t first_row(const AttentionCall& call) const { return batch_head.number * call.streams + first; }
};

// The rows [R, D] of one (b, h), of streams or of prefix entries.
inline Source rows_of(const AttentionCall& call, const Strided& tensor, const BatchHead& batch_head) {
  const int64_t bytes = bytes_of(call.type);
  const int64_t offset = batch_head.batch * tensor.batch_stride + batch_head.head * tensor.head_stride;
  return {static_cast<const char*>(tensor.data) + offset * bytes, tensor.row_stride * bytes};
}

// The rows of a block of queries, or of their suffixes.
inline Source rows_of(const AttentionCall& call, const Strided& tensor, const QueryBlock& block) {
  return rows_of(call, tensor, block.batch_head).from(block.first);
}

// From a number of a block to the same number of the next one, in bytes.
inline int64_t to_next_block(const AttentionCall& call, const Strided& tensor, const QueryBlock& block) {
  if (!block.is_last(call)) return block.count * tensor.row_stride * bytes_of(call.type);
  return rows_of(call, tensor, block.batch_head.next(call)).data - rows_of(call, tensor, block).data;
}

// The prefix entries in `tensor` that a block sees; those of `next_batch_head` in `next` are read after them.
inline Rows prefix_rows(const AttentionCall& call, const Strided& tensor, const QueryBlock& block, const Strided& next,
                        const BatchHead& next_batch_head) {
  const int64_t row_bytes = call.dim * bytes_of(call.type);
  return {rows_of(call, tensor, block.batch_head), block.length, rows_of(call, next, next_batch_head),
          smaller(block.length, (kFetchAhead + row_bytes - 1) / row_bytes)};
}

// The rows of the next block.
inline Source next_rows_of(const AttentionCall& call, const Strided& tensor, const QueryBlock& block) {
  const Source rows = rows_of(call, tensor, block);
  return {rows.data + to_next_block(call, tensor, block), rows.stride};
}

// The suffix [S, D] of one stream, given the streams of (b, h).
inline Source entries_of(const AttentionCall& call, const Strided& tensor, Source streams, int64_t stream) {
  return {streams.row(stream), tensor.entry_stride * bytes_of(call.type)};
}

template <DataType type>
inline Vector load_columns(const char* row, int64_t column) {
  return load_upcast(row, type, column);
}

// The last `count` < 16 columns of a row, and zeros.
template <DataType type>
inline Vector load_last_columns(const char* row, int64_t column, int64_t count) {
  if constexpr (type == DataType::float32) {
    return load_first(reinterpret_cast<const float*>(row) + column, static_cast<int>(count));
  } else {
    uint16_t padded[kLanes] = {};
    __builtin_memcpy(padded, row + column * 2, count * 2);
    return load_upcast(padded, type, 0);
  }
}

// Writes the columns [column, column + 16) that exist.
template <DataType type>
inline void store_columns(char* row, int64_t column, int64_t dim, Vector values) {
  if (dim - column >= kLanes) {
    store_downcast(row, type, column, values);
    return;
  }
  const int64_t bytes = bytes_of(type);
  alignas(64) char padded[kLanes * sizeof(float)];
  store_downcast(padded, type, 0, values);
  __builtin_memcpy(row + column * bytes, padded, (dim - column) * bytes);
}

// A row [D] as float32 in whole Vectors, zero beyond D.
template <DataType type>
inline void upcast_row(const char* row, int64_t dim, float* target) {
  for (int64_t column = 0; column < dim; column += kLanes) {
    const int64_t left = dim - column;
    store(target + column,
          left >= kLanes ? load_columns<type>(row, column) : load_last_columns<type>(row, column, left));
  }
}

// The rows [Q, D] of a block as float32 [Q, target_stride], zero beyond D.
template <DataType type>
inline void upcast_rows(const AttentionCall& call, const Strided& tensor, const QueryBlock& block, float* target,
                        int64_t target_stride) {
  const Source source = rows_of(call, tensor, block);
  for (int64_t i = 0; i < block.count; ++i) upcast_row<type>(source.row(i), call.dim, target + i * target_stride);
}

// The sums of a block [Q, dim], each times its factor where there are some, to rows [Q, D] of a result.
template <DataType type>
inline void write_rows(const QueryBlock& block, const AttentionWorkspace& space, int64_t dim, const float* factors,
                       char* target) {
  for (int64_t m = 0; m < block.count; ++m) {
    const Vector factor = broadcast(factors == nullptr ? 1.0f : factors[m]);
    for (int64_t column = 0; column < dim; column += kLanes) {
      store_columns<type>(target, column, dim, load(space.output + m * space.dim + column) * factor);
    }
    target += dim * bytes_of(type);
  }
}

}  // namespace
}  // namespace plr_kernels
