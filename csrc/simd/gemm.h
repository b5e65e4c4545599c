// Products of matrices (GEMM). A micro-kernel keeps MR rows x NR columns of the result in registers while it runs over
// the terms of the sums; gemm_panel cuts one panel of the result into such tiles; around it, the inner dimension is cut
// into blocks of KC terms, for which one panel of b stays in the first-level cache.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "common.h"

namespace plr_kernels {
namespace {

// ------------------------------------------------------------------------------------------ what is multiplied

// How a product multiplies and adds up: a cell of a panel is one float32, or two bfloat16 that are neighbours along the
// inner dimension.
struct Singles {
  static constexpr int64_t numbers = 1;
  static Vector multiply_add(Vector a, Vector b, Vector c) { return ::multiply_add(a, b, c); }
};
#ifdef __AVX512BF16__
struct Pairs {
  static constexpr int64_t numbers = 2;
  static Vector multiply_add(Vector a, Vector b, Vector c) { return multiply_add_pairs(a, b, c); }
};
#endif

// The operand a of a micro-kernel in its three layouts. Its cell (row i, term k) is data[i * row_step + k * term_step]
// for the `run` terms of a run; from the end of one run to the start of the next there are `jump` cells more.

// a as panels of its rows.
struct PanelRows {
  static constexpr int64_t row_step = kPanelColumns, term_step = 1;
  const float* data;
  int64_t panels_rows;

  int64_t run(int64_t) const { return kPanelColumns; }
  int64_t jump() const { return (panels_rows - 1) * kPanelColumns; }
  PanelRows from(int64_t row) const { return {data + row * row_step, panels_rows}; }
};

// a as panels of its transpose.
struct PanelColumns {
  static constexpr int64_t row_step = 1, term_step = kPanelColumns;
  const float* data;

  int64_t run(int64_t terms) const { return terms; }
  int64_t jump() const { return 0; }
  PanelColumns from(int64_t row) const { return {data + row * row_step}; }
};

// a as it lies in memory, rows `row_step` cells apart. Runs are as long as a cache line.
struct MatrixRows {
  static constexpr int64_t term_step = 1;
  const float* data;
  int64_t row_step;

  int64_t run(int64_t) const { return kLanes; }
  int64_t jump() const { return 0; }
  MatrixRows from(int64_t row) const { return {data + row * row_step, row_step}; }
};

// What a product prefetches meanwhile for those that come after it.

// Nothing.
struct NoPrefetch {
  NoPrefetch part(int64_t, int64_t) const { return {}; }
  void operator()(int64_t) const {}
};

// Rows [first, last) of a matrix from cell `cell` on, into the second-level cache: as many cells as the product reads
// of a.
template <class Cells>
struct RowsPrefetch {
  const Matrix& matrix;
  int64_t cell;
  int64_t first;
  int64_t last;

  // One of `parts` equal shares of the rows.
  RowsPrefetch part(int64_t index, int64_t parts) const {
    const int64_t count = last - first;
    return {matrix, cell, first + count * index / parts, first + count * (index + 1) / parts};
  }
  // The cells of the run that starts at `term`. Inlined always: GCC drops the call of a function that returns nothing
  // and writes nothing.
  __attribute__((always_inline)) void operator()(int64_t term) const {
    const int64_t cell_bytes = bytes_of(matrix.type) * Cells::numbers;
    for (int64_t row = first; row < last; ++row) {
      const char* start = static_cast<const char*>(row_of(matrix, row)) + (cell + term) * cell_bytes;
      for (int64_t byte = 0; byte < kLanes * cell_bytes; byte += kCacheLine) __builtin_prefetch(start + byte, 0, 2);
    }
  }
};

// ------------------------------------------------------------------------------------------ the product

// c [Rows, 16 Vectors] = a b · scale, or += where `accumulate`; a [Rows, k], b [k, 16 Vectors]. Rows of b and c are
// those of one panel.
template <class Cells, int Rows, int Vectors, class A, class Prefetch>
inline void micro_kernel(int64_t k, A a, const float* b, float* c, float scale, bool accumulate,
                         const Prefetch& prefetch) {
  Vector sums[Rows][Vectors];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sums[i][j] = zero();
  }
  const int64_t run = a.run(k);
  for (int64_t done = 0; done < k; done += run) {
    prefetch(done);
    const int64_t terms = smaller(run, k - done);
    for (int64_t term = 0; term < terms; ++term) {
      Vector from_b[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) from_b[j] = load(b + j * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const Vector from_a = broadcast(a.data[i * a.row_step]);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sums[i][j] = Cells::multiply_add(from_a, from_b[j], sums[i][j]);
      }
      a.data += A::term_step;
      b += kPanelColumns;
    }
    a.data += a.jump();
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      float* target = c + i * kPanelColumns + j * kLanes;
      const Vector scaled = sums[i][j] * broadcast(scale);
      store(target, accumulate ? load(target) + scaled : scaled);
    }
  }
}

// The micro-kernel of `rows` <= Rows rows, and of NR columns or of 16.
template <class Cells, int Rows, class A, class Prefetch>
inline void micro_kernel_for(int64_t rows, int64_t vectors, int64_t k, const A& a, const float* b, float* c,
                             float scale, bool accumulate, const Prefetch& prefetch) {
  if constexpr (Rows > 1) {
    if (rows < Rows) {
      micro_kernel_for<Cells, Rows - 1>(rows, vectors, k, a, b, c, scale, accumulate, prefetch);
      return;
    }
  }
  if (vectors == kNRVectors) {
    micro_kernel<Cells, Rows, kNRVectors>(k, a, b, c, scale, accumulate, prefetch);
  } else {
    micro_kernel<Cells, Rows, 1>(k, a, b, c, scale, accumulate, prefetch);
  }
}

// Rows [0, m) of one panel of c, which has `columns` columns, in tiles of nearly equal height.
template <class Cells, class A, class Prefetch>
inline void gemm_panel(int64_t m, int64_t columns, int64_t k, const A& a, const float* b, float* c, float scale,
                       bool accumulate, const Prefetch& prefetch) {
  const int64_t tiles = (m + kMR - 1) / kMR;
  for (int64_t j = 0; j < columns; j += kNRVectors * kLanes) {
    const int64_t vectors = smaller(kNRVectors, (columns - j) / kLanes);
    int64_t i = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t rows = (m - i + tiles - t - 1) / (tiles - t);
      micro_kernel_for<Cells, kMR>(rows, vectors, k, a.from(i), b + j, c + i * kPanelColumns + j, scale, accumulate,
                                   prefetch.part(t, tiles));
      i += rows;
    }
  }
}

template <class Cells>
void gemm(int64_t m, int64_t n, int64_t k, Panels a, Panels b, float scale, bool accumulate, MutablePanels c) {
  for (int64_t first = 0; first < k; first += kKC) {
    const int64_t depth = smaller(kKC, k - first);
    for (int64_t j = 0; j < n; j += kPanelColumns) {
      gemm_panel<Cells>(m, smaller(kPanelColumns, n - j), depth, PanelRows{a.data + first * a.rows, a.rows},
                        b.data + j * b.rows + first * kPanelColumns, c.data + j * c.rows, scale,
                        accumulate || first > 0, NoPrefetch{});
    }
  }
}

template <class Cells>
void gemm_transposed(int64_t m, int64_t n, int64_t k, Panels a, Panels b, MutablePanels c) {
  for (int64_t i = 0; i < m; i += kPanelColumns) {
    for (int64_t j = 0; j < n; j += kPanelColumns) {
      gemm_panel<Cells>(kPanelColumns, smaller(kPanelColumns, n - j), k, PanelColumns{a.data + i * a.rows},
                        b.data + j * b.rows, c.data + j * c.rows + i * kPanelColumns, 1.0f, true, NoPrefetch{});
    }
  }
}

template <class Cells>
void gemm_unpacked(const Matrix& a, int64_t columns, const float* b, float* c, const Matrix& prefetched,
                   int64_t first_prefetched, int64_t prefetched_count) {
  for (int64_t first = 0; first < a.columns; first += kKC) {
    gemm_panel<Cells>(a.rows, columns, smaller(kKC, a.columns - first),
                      MatrixRows{static_cast<const float*>(a.data) + first, a.stride}, b + first * kPanelColumns, c,
                      1.0f, first > 0,
                      RowsPrefetch<Cells>{prefetched, first, first_prefetched, first_prefetched + prefetched_count});
  }
}

}  // namespace
}  // namespace plr_kernels
