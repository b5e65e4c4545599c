// The states, packed for the products.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "operators.h"
#include "panels.h"
#include "threads.h"

namespace plr_kernels {

// Which row of the matrix of states each packed state is, or -1 for one that only fills a Vector or a panel. Its length
// is a multiple of 32.
using Order = std::vector<int64_t>;

// The given rows, in their order.
Order listed_order(std::vector<int64_t> rows);

// [batch, group] as [batch / 16, group, 16]: a group is spread over `group` Vectors, with one batch entry per lane.
Order grouped_order(int64_t batch, int64_t group);

struct States {
  Order order;
  int64_t count;  // packed states, a multiple of 32
  int64_t dim;
  Arithmetic arithmetic;
  int64_t depth;      // cells that a product over dim takes
  Buffer rows;        // panels of [count, dim]: second operand of the items' gradient, gradientᵀ · states
  Buffer transposed;  // panels of [dim, count]: second operand of the scores, items · statesᵀ
  float scale;        // of the scores; 1 where `transposed` holds it already

  int64_t cells(int64_t numbers) const { return cells_of(arithmetic, numbers); }
};

// Whether the gradient w.r.t. the scores is multiplied as it lies there.
constexpr bool multiplies_scores(Arithmetic arithmetic) { return arithmetic == Arithmetic::singles; }

// What sums of products of that gradient are multiplied by.
constexpr float gradient_scale(Arithmetic arithmetic) { return arithmetic == Arithmetic::parts ? kPartsScale : 1.0f; }

// Whether to multiply in bfloat16, on a CPU that can: bfloat16 inputs, and float32 ones where they may be rounded. The
// products of bfloat16 items and states are exact, and the gradient w.r.t. the scores is rounded to bfloat16 as in
// PyTorch's own backward pass. Short sums of such gradients might, by chance, be further from the truth than PyTorch's,
// and take no time anyway.
bool takes_pairs(const Context& context, const Matrix& states, const Matrix& items);
inline Arithmetic pairs_or_singles(bool paired) { return paired ? Arithmetic::pairs : Arithmetic::singles; }

// Of these and parts, those with which scores times `scale` and their gradients take the least time. float32 numbers take
// parts where all are finite and neither so large nor so small together that parts of them, or sums of their products,
// might not be: reads both matrices.
Arithmetic choose_arithmetic(const Context& context, const Matrix& states, const Matrix& items, double scale);

// That, but for gradients w.r.t. the scores of which parts might not be finite either.
Arithmetic within(Arithmetic arithmetic, double largest_gradient);

// Rows of a matrix in bfloat16: as they are in memory, or rounded into memory of their own.
class Bfloat16Rows {
 public:
  // At most `kept` rows are asked for before the first of them is done with.
  Bfloat16Rows(const Kernels& kernels, const Matrix& matrix, int64_t kept)
      : kernels_(kernels),
        matrix_(matrix),
        in_place_(matrix.type == DataType::bfloat16 && matrix.norms == nullptr),
        kept_(kept),
        rounded_(in_place_ ? 0 : kept * matrix.columns) {}

  const uint16_t* row(int64_t row) {
    if (in_place_) return static_cast<const uint16_t*>(row_of(matrix_, row));
    uint16_t* target = rounded_.data() + (next_++ % kept_) * matrix_.columns;
    kernels_.pairs.round_row(matrix_, row, target);
    return target;
  }

 private:
  const Kernels& kernels_;
  const Matrix& matrix_;
  const bool in_place_;
  const int64_t kept_;
  int64_t next_ = 0;
  std::vector<uint16_t> rounded_;
};

// Rows of a matrix in float32, likewise.
class Float32Rows {
 public:
  Float32Rows(const Kernels& kernels, const Matrix& matrix, int64_t kept)
      : kernels_(kernels),
        matrix_(matrix),
        in_place_(matrix.type == DataType::float32 && matrix.norms == nullptr),
        kept_(kept),
        row_size_(panels_size(1, matrix.columns)),
        loaded_(in_place_ ? 0 : kept * row_size_) {}

  const float* row(int64_t row) {
    if (in_place_) return static_cast<const float*>(row_of(matrix_, row));
    float* target = loaded_.data() + (next_++ % kept_) * row_size_;
    kernels_.load_rows(matrix_, row, 1, target, 1);
    return target;
  }

 private:
  const Kernels& kernels_;
  const Matrix& matrix_;
  const bool in_place_;
  const int64_t kept_, row_size_;
  int64_t next_ = 0;
  Buffer loaded_;
};

// `scale` multiplies the scores.
States pack_states(const Context& context, const Matrix& states, Order order, double scale, Arithmetic arithmetic);

// A number per row of the matrix as one per packed state; 0 for those that are no row.
Buffer packed_column(const States& states, const float* column);

// The gradient w.r.t. `count` rows of a matrix from row `first` on, panels [.., dim] times `scale`, to the same rows of
// `target`. Where the rows are unit vectors it becomes the gradient w.r.t. the vectors, in the panels too: what points
// along a vector changes nothing.
void store_gradient(const Kernels& kernels, const Matrix& matrix, int64_t first, int64_t count, float* panels,
                    int64_t panels_rows, float scale, const MutableMatrix& target);

// Likewise the gradient w.r.t. the packed states, panels [count, dim]; rows that are not packed stay as they are.
void store_states_gradient(const Context& context, const States& states, const Matrix& matrix, Buffer& panels,
                           float scale, const MutableMatrix& target);

}  // namespace plr_kernels
