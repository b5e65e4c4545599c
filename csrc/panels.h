// The one layout in which all products read and write their matrices.
//
// A matrix [rows, columns] is cut into panels of 32 columns, each stored contiguously:
//
//     [columns / 32][rows][32]
//
// A panel of 256 rows takes 32 KB and so stays in the first-level cache while the other operand streams past it.
// The last panel has its full size. What lies in it beyond `columns` reaches no result.
#pragma once

#include <cstdint>

namespace plr_kernels {

constexpr int64_t kLanes = 16;  // numbers in a Vector, on every instruction set
constexpr int64_t kPanelColumns = 32;
constexpr int64_t kKC = 256;  // terms that a product sums before it adds them to the result

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Numbers in the panels of a matrix [rows, columns].
constexpr int64_t panels_size(int64_t rows, int64_t columns) { return rows * round_up(columns, kPanelColumns); }

// What the cells of panels are that a product multiplies: numbers in float32, pairs of bfloat16 (PairKernels) or pairs
// of parts of float32 (PartKernels).
enum class Arithmetic { singles, pairs, parts };

// Cells of so many numbers along the inner dimension.
constexpr int64_t cells_of(Arithmetic arithmetic, int64_t numbers) {
  constexpr int64_t together = 32, cells = 48;
  switch (arithmetic) {
    case Arithmetic::singles:
      return numbers;
    case Arithmetic::pairs:
      return (numbers + 1) / 2;
    default:
      return round_up(numbers, together) / together * cells;
  }
}

// A matrix in panels, each of which has room for `rows` rows.
struct Panels {
  const float* data;
  int64_t rows;
};

struct MutablePanels {
  float* data;
  int64_t rows;
};

}  // namespace plr_kernels
