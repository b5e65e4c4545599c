// A matrix as PyTorch holds it.
#pragma once

#include <cstdint>
#include <cstring>

namespace plr_kernels {

enum class DataType : int { float32, bfloat16, float16 };

// [rows, columns], consecutive columns adjacent in memory.
struct Matrix {
  const void* data;
  DataType type;
  int64_t rows;
  int64_t columns;
  int64_t stride;  // numbers from one row to the next
  // Where not null, the matrix stands for one of unit vectors, which is kept nowhere: load_rows divides by the norms.
  const float* norms = nullptr;  // [rows]
  float norm_floor = 0.0f;       // smaller norms count as this
};

struct MutableMatrix {
  void* data;
  DataType type;
  int64_t stride;
};

constexpr int64_t bytes_of(DataType type) { return type == DataType::float32 ? 4 : 2; }

// NaN for a norm that is.
inline float divisor_of(const Matrix& matrix, int64_t row) {
  return matrix.norms[row] < matrix.norm_floor ? matrix.norm_floor : matrix.norms[row];
}

inline const void* row_of(const Matrix& matrix, int64_t row) {
  return static_cast<const char*>(matrix.data) + row * matrix.stride * bytes_of(matrix.type);
}

inline void* row_of(const MutableMatrix& matrix, int64_t row) {
  return static_cast<char*>(matrix.data) + row * matrix.stride * bytes_of(matrix.type);
}

// All bits of a number are zero in 0.0, of whatever type.
inline void fill_zero(const MutableMatrix& matrix, int64_t rows, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) std::memset(row_of(matrix, row), 0, columns * bytes_of(matrix.type));
}

}  // namespace plr_kernels
