// Scores where a (b, h) has many queries: prefix keys, or values, are packed once with entries in the lanes, so that a
// row of a block needs no sum over lanes, and each number that is loaded serves a whole tile of queries.
#pragma once

#include <cstdint>

#include "rows.h"

namespace plr_kernels {
namespace {

// Panels of 16 entries, [entries / 16, dim, 16], zero beyond the entries.
struct PackedEntries {
  const float* data;
  int64_t dim;

  const float* panel(int64_t index) const { return data + index * dim * kLanes; }
};

// Four neighbouring columns of four rows, as rows of the result: target[column * kLanes + row].
inline void transpose_four(const float* const (&rows)[4], int64_t column, float* target) {
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t Lanes __attribute__((vector_size(16)));
  Four a, b, c, d;
  __builtin_memcpy(&a, rows[0] + column, sizeof(a));
  __builtin_memcpy(&b, rows[1] + column, sizeof(b));
  __builtin_memcpy(&c, rows[2] + column, sizeof(c));
  __builtin_memcpy(&d, rows[3] + column, sizeof(d));
#ifdef __clang__
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Four columns[4] = {
      __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
#else
  const Lanes low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
  const Four ab_low = __builtin_shuffle(a, b, low), ab_high = __builtin_shuffle(a, b, high);
  const Four cd_low = __builtin_shuffle(c, d, low), cd_high = __builtin_shuffle(c, d, high);
  const Four columns[4] = {__builtin_shuffle(ab_low, cd_low, first), __builtin_shuffle(ab_low, cd_low, second),
                           __builtin_shuffle(ab_high, cd_high, first), __builtin_shuffle(ab_high, cd_high, second)};
#endif
  for (int i = 0; i < 4; ++i) __builtin_memcpy(target + i * kLanes, &columns[i], sizeof(Four));
}

// Packs `count` rows; `upcast` has room for four of them, in whole Vectors.
template <DataType type>
inline void pack_entries(const Source& source, int64_t count, int64_t dim, float* upcast, float* packed) {
  const int64_t upcast_stride = round_up(dim, kLanes);
  for (int64_t e = 0; e < round_up(count, kLanes); e += 4) {
    float* target = packed + e / kLanes * dim * kLanes + e % kLanes;
    const float* rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      float* row = upcast + i * upcast_stride;
      rows[i] = row;
      if (e + i >= count) {
        for (int64_t column = 0; column < dim; column += kLanes) store(row + column, zero());
      } else if constexpr (type == DataType::float32) {
        rows[i] = reinterpret_cast<const float*>(source.row(e + i));
      } else {
        for (int64_t column = 0; column < dim; column += kLanes) {
          const int64_t left = dim - column;
          store(row + column, left >= kLanes ? load_columns<type>(source.row(e + i), column)
                                             : load_last_columns<type>(source.row(e + i), column, left));
        }
      }
    }
    int64_t column = 0;
    for (; column + 4 <= dim; column += 4) transpose_four(rows, column, target + column * kLanes);
    for (; column < dim; ++column) {
      for (int64_t i = 0; i < 4; ++i) target[column * kLanes + i] = rows[i][column];
    }
  }
}

// Rows of D numbers that packed_dots fetches, a row with each of its own: what is read soon, and what is written soon. In
// one go they would keep the CPU waiting: few lines can be on their way at once.
struct FetchedRows {
  Source read;
  Source written;

  FetchedRows from(int64_t row) const { return {read.from(row), written.from(row)}; }
};

// products[i, e] = factor · ⟨left[i], entry e⟩ for kPackedRows rows of `left` and Panels panels of entries; `fill` from
// entry lengths[i] on.
template <DataType type, int Panels>
inline void packed_tile(const float* left, int64_t left_stride, const float* packed, const FetchedRows* fetched,
                        int64_t dim, float factor, const float* lengths, float fill, float* products,
                        int64_t products_stride) {
  alignas(64) static constexpr float kNumbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Vector tile[kPackedRows][Panels];
#pragma GCC unroll 8
  for (int i = 0; i < kPackedRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Panels; ++j) tile[i][j] = zero();
  }
  const int64_t panel_size = dim * kLanes;
  for (int64_t start = 0; start < dim; start += kLanes) {
    if (fetched != nullptr) {
#pragma GCC unroll 8
      for (int i = 0; i < kPackedRows; ++i) {
        fetch(fetched->read.row(i) + start * bytes_of(type));
        fetch_for_writing(fetched->written.row(i) + start * bytes_of(type));
      }
    }
    const int64_t end = smaller(start + kLanes, dim);
    for (int64_t column = start; column < end; ++column) {
      Vector entries[Panels];
#pragma GCC unroll 4
      for (int j = 0; j < Panels; ++j) entries[j] = load(packed + j * panel_size + column * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kPackedRows; ++i) {
        const Vector from_left = broadcast(left[i * left_stride + column]);
#pragma GCC unroll 4
        for (int j = 0; j < Panels; ++j) tile[i][j] = multiply_add(from_left, entries[j], tile[i][j]);
      }
    }
  }
  const Vector numbers = load(kNumbers), scale = broadcast(factor), other = broadcast(fill);
#pragma GCC unroll 8
  for (int i = 0; i < kPackedRows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Panels; ++j) {
      const Vector length = broadcast(lengths[i] - static_cast<float>(j * kLanes));
      store(products + i * products_stride + j * kLanes, where_greater(length, numbers, tile[i][j] * scale, other));
    }
  }
}

// The same for at most Panels panels.
template <DataType type, int Panels = kPackedPanels>
inline void packed_tiles(int64_t panels, const float* left, int64_t left_stride, const float* packed,
                         const FetchedRows* fetched, int64_t dim, float factor, const float* lengths, float fill,
                         float* products, int64_t products_stride) {
  if constexpr (Panels > 1) {
    if (panels < Panels) {
      packed_tiles<type, Panels - 1>(panels, left, left_stride, packed, fetched, dim, factor, lengths, fill, products,
                                     products_stride);
      return;
    }
  }
  packed_tile<type, Panels>(left, left_stride, packed, fetched, dim, factor, lengths, fill, products, products_stride);
}

// products[m, e] = factor · ⟨left[m], entry e⟩ for the streams of a block and the prefix entries that each sees, `fill`
// for the others, up to whole Vectors. Has kPackedRows rows at a time: `left` and `products` have room for as many.
template <DataType type>
inline void packed_dots(const AttentionCall& call, const QueryBlock& block, const PackedEntries& entries,
                        const FetchedRows& fetched, float* left, int64_t left_stride, float factor, float fill,
                        float* products, int64_t products_stride) {
  const int64_t rows = round_up(block.count, kPackedRows), end = round_up(block.length, kLanes);
  for (int64_t i = block.count; i < rows; ++i) {
    for (int64_t column = 0; column < left_stride; column += kLanes) store(left + i * left_stride + column, zero());
  }
  for (int64_t first = 0; first < end; first += kPackedPanels * kLanes) {
    const int64_t in_group = smaller(kPackedPanels * kLanes, end - first);
    for (int64_t m = 0; m < rows; m += kPackedRows) {
      float lengths[kPackedRows];
      int64_t longest = 0;
      for (int64_t i = 0; i < kPackedRows; ++i) {
        const int64_t seen = m + i < block.count ? larger(block.length_of(call, m + i) - first, 0) : 0;
        lengths[i] = static_cast<float>(smaller(seen, in_group));
        longest = larger(longest, smaller(seen, in_group));
      }
      const int64_t panels = (longest + kLanes - 1) / kLanes;
      float* target = products + m * products_stride + first;
      if (panels > 0) {
        const FetchedRows fetched_rows = fetched.from(m);
        packed_tiles<type>(panels, left + m * left_stride, left_stride, entries.panel(first / kLanes),
                           first == 0 ? &fetched_rows : nullptr, call.dim, factor, lengths, fill, target,
                           products_stride);
      }
      for (int64_t i = 0; i < kPackedRows; ++i) {
        for (int64_t e = panels * kLanes; e < in_group; e += kLanes) {
          store(target + i * products_stride + e, broadcast(fill));
        }
      }
    }
  }
}

}  // namespace
}  // namespace plr_kernels
