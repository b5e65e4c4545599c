// Products of bfloat16, and of parts of float32, by AMX tiles: matrices of 16 rows of 64 bytes in registers of their
// own. A tile of a is 16 rows of 16 pairs, one of b 16 pairs of 16 columns, one of the result 16 x 16 float32: as they
// lie in panels, and a also as it lies in memory.
//
// The inner dimension is cut into tiles in the same way for all rows and columns: a number of the result depends on its
// row of a and its column of b, not on where they stand.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"
#include "gemm.h"

namespace plr_kernels {
namespace {

constexpr int64_t kTile = 16;             // rows of a tile, and cells of its rows
constexpr int64_t kTileRows = 2 * kTile;  // rows of the result that are computed together
constexpr int64_t kPanelBytes = kPanelColumns * int64_t{sizeof(float)};  // from a panel's row to the next

// To the compiler, instructions that load tiles read nothing.
inline void finish_writing(const void* memory) { __asm__ volatile("" ::"r"(memory) : "memory"); }

// What the CPU is told about its eight tiles.
struct TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3: up to 32 rows and 32 columns of the result; 4 and 5: those rows of a; 6 and 7: those columns of b.
inline void configure_tiles(int64_t rows, int64_t cells) {
  alignas(64) TileConfiguration configuration;
  const auto set = [&](int tile, int64_t tile_rows, int64_t tile_cells) {
    if (tile_rows == 0) return;
    configuration.rows[tile] = static_cast<uint8_t>(tile_rows);
    configuration.row_bytes[tile] = static_cast<uint16_t>(tile_cells * sizeof(float));
  };
  for (int half = 0; half < 2; ++half) {
    const int64_t rows_of_half = half == 0 ? smaller(rows, kTile) : larger(rows - kTile, 0);
    set(2 * half, rows_of_half, kTile);
    set(2 * half + 1, rows_of_half, kTile);
    set(4 + half, rows_of_half, cells);
    set(6 + half, cells, kTile);
  }
  finish_writing(&configuration);
  _tile_loadconfig(&configuration);
}

// A part of a product: rows [row, row + rows), at most 32, and of the inner dimension the cells [first_cell, end_cell),
// at most 16 at a time.
struct Strip {
  int64_t row, rows;
  int64_t first_cell, end_cell;
};

// Calls visit(strip) for all parts of a product with m rows and k cells, with tiles that are configured for it; of the
// same rows, those of earlier cells first. Then no tiles are configured, as before: a thread's next user may know
// nothing of them.
template <class Visit>
inline void for_strips(int64_t m, int64_t k, const Visit& visit) {
  const int64_t whole_rows = m / kTileRows * kTileRows, whole_cells = k / kTile * kTile;
  const auto visit_all = [&](int64_t first_row, int64_t end_row, int64_t first_cell, int64_t end_cell) {
    if (first_row == end_row || first_cell == end_cell) return;
    const int64_t rows = smaller(kTileRows, end_row - first_row);
    configure_tiles(rows, smaller(kTile, end_cell - first_cell));
    for (int64_t row = first_row; row < end_row; row += rows) visit(Strip{row, rows, first_cell, end_cell});
  };
  visit_all(0, whole_rows, 0, whole_cells);
  visit_all(0, whole_rows, whole_cells, k);
  visit_all(whole_rows, m, 0, whole_cells);
  visit_all(whole_rows, m, whole_cells, k);
  _tile_release();
}

// A row's cells from a multiple of 16 on.
inline const float* cells_from(const PanelRows& a, int64_t row, int64_t cell) {
  return a.data + (cell / kPanelColumns * a.panels_rows + row) * kPanelColumns + cell % kPanelColumns;
}
inline const float* cells_from(const MatrixRows& a, int64_t row, int64_t cell) {
  return a.data + row * a.row_step + cell;
}

// c [rows, 16] = numbers [rows, 16] · scale, or +=.
inline void store_scaled(const float* numbers, int64_t rows, float scale, bool accumulate, float* c) {
  for (int64_t i = 0; i < rows; ++i) {
    const Vector scaled = load(numbers + i * kTile) * broadcast(scale);
    float* target = c + i * kPanelColumns;
    store(target, accumulate ? load(target) + scaled : scaled);
  }
}

// The tiles of a and b, and their product added to the result's.
template <int Rows, class A>
inline void load_rows_of_a(const A& a, int64_t row, int64_t cell) {
  const int64_t row_bytes = a.row_step * int64_t{sizeof(float)};
  _tile_loadd(4, cells_from(a, row, cell), row_bytes);
  if constexpr (Rows > 1) _tile_loadd(5, cells_from(a, row + kTile, cell), row_bytes);
}
template <int Columns>
inline void load_columns_of_b(const float* b) {
  _tile_loadd(6, b, kPanelBytes);
  if constexpr (Columns > 1) _tile_loadd(7, b + kTile, kPanelBytes);
}
template <int Rows, int Columns>
inline void add_product() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (Columns > 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (Rows > 1) _tile_dpbf16ps(2, 5, 6);
  if constexpr (Rows > 1 && Columns > 1) _tile_dpbf16ps(3, 5, 7);
}

// How the cells of a product are multiplied: so many at a time, those of a row of a and of b [cells, 32].
struct PairTiles {
  static constexpr int64_t cells = kTile;

  template <int Rows, int Columns, class A>
  static void add(const A& a, int64_t row, int64_t cell, const float* b) {
    load_rows_of_a<Rows>(a, row, cell);
    load_columns_of_b<Columns>(b);
    add_product<Rows, Columns>();
  }
};
struct PartTiles {
  static constexpr int64_t cells = 3 * kTile;

  // Six products of the leading, middle and last parts, in an order that loads few tiles twice.
  template <int Rows, int Columns, class A>
  static void add(const A& a, int64_t row, int64_t cell, const float* b) {
    constexpr int64_t middle = kTile, last = 2 * kTile;
    load_columns_of_b<Columns>(b);
    load_rows_of_a<Rows>(a, row, cell + last);
    add_product<Rows, Columns>();
    load_rows_of_a<Rows>(a, row, cell + middle);
    add_product<Rows, Columns>();
    load_rows_of_a<Rows>(a, row, cell);
    add_product<Rows, Columns>();
    load_columns_of_b<Columns>(b + last * kPanelColumns);
    add_product<Rows, Columns>();
    load_columns_of_b<Columns>(b + middle * kPanelColumns);
    add_product<Rows, Columns>();
    load_rows_of_a<Rows>(a, row, cell + middle);
    add_product<Rows, Columns>();
  }
};

// c = a b · scale, or += where `accumulate`, of a strip and 16 Columns columns; b and c are those of a panel, all rows.
// Rows: 2 where the strip has more than 16, else 1.
template <class Tiles, int Rows, int Columns, class A, class Prefetch>
inline void tile_kernel(const Strip& strip, const A& a, const float* b, float* c, float scale, bool accumulate,
                        const Prefetch& prefetch) {
  const int64_t row = strip.row;
  c += row * kPanelColumns;
  float* lower = c + kTile * kPanelColumns;
  const bool summed_in_tiles = accumulate && scale == 1.0f;
  if (summed_in_tiles) {
    _tile_loadd(0, c, kPanelBytes);
    if constexpr (Columns > 1) _tile_loadd(1, c + kTile, kPanelBytes);
    if constexpr (Rows > 1) _tile_loadd(2, lower, kPanelBytes);
    if constexpr (Rows > 1 && Columns > 1) _tile_loadd(3, lower + kTile, kPanelBytes);
  } else {
    _tile_zero(0);
    if constexpr (Columns > 1) _tile_zero(1);
    if constexpr (Rows > 1) _tile_zero(2);
    if constexpr (Rows > 1 && Columns > 1) _tile_zero(3);
  }
  for (int64_t cell = strip.first_cell; cell < strip.end_cell; cell += Tiles::cells) {
    prefetch(cell);
    Tiles::template add<Rows, Columns>(a, row, cell, b + cell * kPanelColumns);
  }
  if (scale == 1.0f) {
    _tile_stored(0, c, kPanelBytes);
    if constexpr (Columns > 1) _tile_stored(1, c + kTile, kPanelBytes);
    if constexpr (Rows > 1) _tile_stored(2, lower, kPanelBytes);
    if constexpr (Rows > 1 && Columns > 1) _tile_stored(3, lower + kTile, kPanelBytes);
    return;
  }
  alignas(64) float numbers[4][kTile * kTile];
  constexpr int64_t number_bytes = kTile * int64_t{sizeof(float)};
  const int64_t upper_rows = smaller(strip.rows, kTile), lower_rows = strip.rows - kTile;
  _tile_stored(0, numbers[0], number_bytes);
  if constexpr (Columns > 1) _tile_stored(1, numbers[1], number_bytes);
  if constexpr (Rows > 1) _tile_stored(2, numbers[2], number_bytes);
  if constexpr (Rows > 1 && Columns > 1) _tile_stored(3, numbers[3], number_bytes);
  store_scaled(numbers[0], upper_rows, scale, accumulate, c);
  if constexpr (Columns > 1) store_scaled(numbers[1], upper_rows, scale, accumulate, c + kTile);
  if constexpr (Rows > 1) store_scaled(numbers[2], lower_rows, scale, accumulate, lower);
  if constexpr (Rows > 1 && Columns > 1) store_scaled(numbers[3], lower_rows, scale, accumulate, lower + kTile);
}

// The same of one panel, which has `columns` columns, 16 or 32.
template <class Tiles, class A, class Prefetch>
inline void tiled_panel(const Strip& strip, int64_t columns, const A& a, const float* b, float* c, float scale,
                        bool accumulate, const Prefetch& prefetch) {
  const auto run = [&](auto kernel) { kernel(strip, a, b, c, scale, accumulate || strip.first_cell > 0, prefetch); };
  if (strip.rows > kTile) {
    columns > kTile ? run(tile_kernel<Tiles, 2, 2, A, Prefetch>) : run(tile_kernel<Tiles, 2, 1, A, Prefetch>);
  } else {
    columns > kTile ? run(tile_kernel<Tiles, 1, 2, A, Prefetch>) : run(tile_kernel<Tiles, 1, 1, A, Prefetch>);
  }
}

// The transpose of `rows` <= 16 rows of 16 cells, as 16 rows of 16 cells of which those beyond `rows` are zero.
inline void transpose(const float* source, int64_t rows, int64_t source_step, float* target, int64_t target_step) {
  __m512 a[kTile], b[kTile];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTile; ++i) a[i] = (i < rows ? load(source + i * source_step) : zero()).value;
  // Within each 128 bits pairs of rows, then of pairs; then those quarters.
#pragma GCC unroll 8
  for (int i = 0; i < kTile; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  const auto low = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
#pragma GCC unroll 4
  for (int i = 0; i < kTile; i += 4) {
    a[i] = low(b[i], b[i + 2]);
    a[i + 1] = high(b[i], b[i + 2]);
    a[i + 2] = low(b[i + 1], b[i + 3]);
    a[i + 3] = high(b[i + 1], b[i + 3]);
  }
  // Quarter q of a[4 r + i] is now column 4 q + i of rows 4 r to 4 r + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 even_low = _mm512_shuffle_f32x4(a[i], a[4 + i], 0x88);  // quarters 0 and 2 of rows 0 to 7
    const __m512 odd_low = _mm512_shuffle_f32x4(a[i], a[4 + i], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(a[8 + i], a[12 + i], 0xdd);
    store(target + i * target_step, {_mm512_shuffle_f32x4(even_low, even_high, 0x88)});
    store(target + (4 + i) * target_step, {_mm512_shuffle_f32x4(odd_low, odd_high, 0x88)});
    store(target + (8 + i) * target_step, {_mm512_shuffle_f32x4(even_low, even_high, 0xdd)});
    store(target + (12 + i) * target_step, {_mm512_shuffle_f32x4(odd_low, odd_high, 0xdd)});
  }
}

// ------------------------------------------------------------------------------------------ the products

// A strip of a stays in the first-level cache while the panels of b stream past it.
template <class Tiles>
void tiled_gemm(int64_t m, int64_t n, int64_t k, Panels a, Panels b, float scale, bool accumulate, MutablePanels c) {
  for_strips(m, k, [&](const Strip& strip) {
    for (int64_t j = 0; j < n; j += kPanelColumns) {
      tiled_panel<Tiles>(strip, smaller(kPanelColumns, n - j), PanelRows{a.data, a.rows}, b.data + j * b.rows,
                  c.data + j * c.rows, scale, accumulate, NoPrefetch{});
    }
  });
}

template <class Tiles>
void tiled_gemm_transposed(int64_t m, int64_t n, int64_t k, Panels a, Panels b, MutablePanels c) {
  constexpr int64_t most_cells = 4 * Tiles::cells;
  alignas(64) float rows[kPanelColumns * most_cells];  // of aᵀ
  for (int64_t i = 0; i < m; i += kPanelColumns) {
    for (int64_t first = 0; first < k; first += most_cells) {
      const int64_t cells = smaller(most_cells, k - first);
      for (int64_t cell = 0; cell < cells; cell += kTile) {
        for (int64_t column = 0; column < kPanelColumns; column += kTile) {
          transpose(a.data + i * a.rows + (first + cell) * kPanelColumns + column, smaller(kTile, cells - cell),
                    kPanelColumns, rows + column * most_cells + cell, most_cells);
        }
      }
      finish_writing(rows);
      for_strips(kPanelColumns, cells, [&](const Strip& strip) {
        for (int64_t j = 0; j < n; j += kPanelColumns) {
          tiled_panel<Tiles>(strip, smaller(kPanelColumns, n - j), MatrixRows{rows, most_cells},
                      b.data + j * b.rows + first * kPanelColumns, c.data + j * c.rows + i * kPanelColumns, 1.0f, true,
                      NoPrefetch{});
        }
      });
    }
  }
}

void tiled_gemm_unpacked(const Matrix& a, int64_t columns, const float* b, float* c, const Matrix& prefetched,
                         int64_t first_prefetched, int64_t prefetched_count) {
  const RowsPrefetch<Pairs> prefetch{prefetched, 0, first_prefetched, first_prefetched + prefetched_count};
  const int64_t strips = (a.rows + kTileRows - 1) / kTileRows;
  for_strips(a.rows, a.columns, [&](const Strip& strip) {
    tiled_panel<PairTiles>(strip, columns, MatrixRows{static_cast<const float*>(a.data), a.stride}, b, c, 1.0f, false,
                prefetch.part(strip.row / kTileRows, strips));
  });
}

}  // namespace
}  // namespace plr_kernels
