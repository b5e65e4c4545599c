// Sums of rows: Σ_e weight[m, e] row e over the prefix entries and over the stream's suffix. The output, and the
// gradient w.r.t. the query.
#pragma once

#include <cstdint>

#include "rows.h"
#include "weights.h"

namespace plr_kernels {
namespace {

// Streams' suffixes, entry s of stream i with the weight [i, s].
template <class Weights>
struct SuffixEntries {
  Source streams;
  int64_t entry_stride;
  int64_t count;
  Weights weights;
  int64_t ahead;  // bytes to those of the next block, to be fetched; 0: none are

  SuffixEntries from(int64_t stream) const {
    return {streams.from(stream), entry_stride, count, weights.from(stream, 0), ahead};
  }
};

// sums[i] = Σ_s suffix weight · suffix entry + Σ_e weights[i, e] row e, for Streams rows of weights and Vectors Vectors
// from `column` on; with Last, one Vector that is only partly within `dim`. Where `suffix` is null, the second sum is
// added to sums[i]. `first_visit` says that the rows have not been read before.
template <DataType type, int Streams, int Vectors, bool Last, class Weights>
inline void sum_tile(const Weights& weights, const Rows& rows, int64_t entries, bool first_visit,
                     const SuffixEntries<Weights>* suffix, int64_t column, int64_t dim, float* sums, int64_t sums_stride) {
  static_assert(!Last || Vectors == 1, "only the last Vector of a row is not whole");
  const int64_t start = column * bytes_of(type);
  const auto vector_at = [&](const char* row, int j) {
    return Last ? load_last_columns<type>(row, 0, dim - column) : load_columns<type>(row, j * kLanes);
  };
  const auto fetch_at = [&](const char* row, int j)
                            __attribute__((always_inline)) { fetch(row + j * kLanes * bytes_of(type)); };
  Vector tile[Streams][Vectors];
#pragma GCC unroll 4
  for (int i = 0; i < Streams; ++i) {
    if (suffix == nullptr) {
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) tile[i][j] = load(sums + i * sums_stride + column + j * kLanes);
      continue;
    }
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) tile[i][j] = zero();
    const char* row = suffix->streams.row(i);
    for (int64_t s = 0; s < suffix->count; ++s) {
      const Vector weight = broadcast(suffix->weights.at(i, s));
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        tile[i][j] = multiply_add(weight, vector_at(row + start, j), tile[i][j]);
        fetch_at(row + start + suffix->ahead, j);
      }
      row += suffix->entry_stride;
    }
  }
  // Whole rows are fetched at the first visit, which is that of the first columns.
  constexpr int64_t in_tile = Vectors * kLanes * bytes_of(type);
  const int64_t row_bytes = first_visit ? dim * bytes_of(type) : 0;
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
        const Vector weight = broadcast(weights.at(i, e));
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
template <DataType type, int Streams, int Vectors, class Weights>
inline void sum_last_columns(const Weights& weights, const Rows& rows, int64_t entries, bool first_visit,
                             const SuffixEntries<Weights>* suffix, int64_t column, int64_t dim, float* sums,
                             int64_t sums_stride) {
  if constexpr (Vectors == 0) {
    if (column < dim) {
      sum_tile<type, Streams, 1, true>(weights, rows, entries, first_visit, suffix, column, dim, sums, sums_stride);
    }
  } else if ((dim - column) / kLanes >= Vectors) {
    sum_tile<type, Streams, Vectors, false>(weights, rows, entries, first_visit, suffix, column, dim, sums,
                                            sums_stride);
    sum_last_columns<type, Streams, 0>(weights, rows, entries, false, suffix, column + Vectors * kLanes, dim, sums,
                                       sums_stride);
  } else {
    sum_last_columns<type, Streams, Vectors - 1>(weights, rows, entries, first_visit, suffix, column, dim, sums,
                                                 sums_stride);
  }
}

// All columns of at most Streams rows: first, where they are few enough streams, in wide tiles.
template <DataType type, int Streams = kStreamTile, class Weights>
inline void sums_of_tile(int64_t streams, const Weights& weights, const Rows& rows, int64_t entries, bool first_visit,
                         const SuffixEntries<Weights>* suffix, int64_t dim, float* sums, int64_t sums_stride) {
  if constexpr (Streams > 1) {
    if (streams < Streams) {
      sums_of_tile<type, Streams - 1>(streams, weights, rows, entries, first_visit, suffix, dim, sums, sums_stride);
      return;
    }
  }
  int64_t column = 0;
  if constexpr (Streams <= kWideStreams && kWideVectors > kSumVectors) {
    for (; column + kWideVectors * kLanes <= dim; column += kWideVectors * kLanes) {
      sum_tile<type, Streams, kWideVectors, false>(weights, rows, entries, first_visit && column == 0, suffix, column,
                                                   dim, sums, sums_stride);
    }
  }
  for (; column + kSumVectors * kLanes <= dim; column += kSumVectors * kLanes) {
    sum_tile<type, Streams, kSumVectors, false>(weights, rows, entries, first_visit && column == 0, suffix, column,
                                                dim, sums, sums_stride);
  }
  sum_last_columns<type, Streams, kSumVectors - 1>(weights, rows, entries, first_visit && column == 0, suffix, column,
                                                   dim, sums, sums_stride);
}

// Of what weighted_sums fetches the next rows, with each that it reads.
enum class Fetches { none, prefix, suffix, all };

// sums[m] = Σ weight · row over the prefix entries and over the suffix [S, D] of each stream of a block, whose weights
// begin with those of `suffix_start`.
template <DataType type, class Weights>
inline void weighted_sums(const AttentionCall& call, const Rows& rows, const Strided& suffix, const QueryBlock& block,
                          Fetches fetches, const Weights& weights, int64_t suffix_start, float* sums,
                          int64_t sums_stride) {
  const SuffixEntries<Weights> all_suffixes{rows_of(call, suffix, block), suffix.entry_stride * bytes_of(type),
                                            call.suffix, weights.from(0, suffix_start),
                                            fetches == Fetches::suffix || fetches == Fetches::all
                                                ? to_next_block(call, suffix, block)
                                                : 0};
  const bool fetches_prefix = fetches == Fetches::prefix || fetches == Fetches::all;
  // Rows that are read as a whole come faster: few streams at a time where that lets all columns be in registers.
  const int64_t tile = call.dim >= kWideVectors * kLanes ? kWideStreams : kStreamTile;
  int64_t first = 0;
  do {  // once even where there is no prefix
    const Rows entries = rows.from(first);
    for (int64_t m = 0; m < block.count; m += tile) {
      const SuffixEntries<Weights> suffix_entries = all_suffixes.from(m);
      sums_of_tile<type>(smaller(tile, block.count - m), weights.from(m, first), entries,
                         larger(smaller(kEntryBlock, block.longest_of(call, m, tile) - first), 0),
                         fetches_prefix && m == 0, first == 0 ? &suffix_entries : nullptr, call.dim,
                         sums + m * sums_stride, sums_stride);
    }
    first += kEntryBlock;
  } while (first < rows.count);
}

}  // namespace
}  // namespace plr_kernels
