// How the arguments of the extension's functions come from Python: tensors as (address, data type, rows, columns,
// stride), without PyTorch's headers, so that one build works with every PyTorch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"

namespace plr_kernels {

using Address = std::uintptr_t;
using MatrixArguments = std::tuple<Address, std::string, int64_t, int64_t, int64_t>;

inline DataType data_type(const std::string& name) {
  if (name == "float32") return DataType::float32;
  if (name == "bfloat16") return DataType::bfloat16;
  if (name == "float16") return DataType::float16;
  throw std::invalid_argument("data type must be float32, bfloat16 or float16, found " + name);
}

template <class Number>
Number* pointer(Address address) {
  return reinterpret_cast<Number*>(address);  // NOLINT: an address from Tensor.data_ptr()
}

inline Matrix matrix(const MatrixArguments& arguments) {
  const auto& [address, type, rows, columns, stride] = arguments;
  return {pointer<const void>(address), data_type(type), rows, columns, stride};
}

// A gradient to write: new memory, which allocators have from the system each time where it is as large as this.
inline std::optional<MutableMatrix> mutable_matrix(const std::optional<MatrixArguments>& arguments) {
  constexpr int64_t from_the_system = int64_t{32} << 20;
  if (!arguments) return std::nullopt;
  const auto& [address, type, rows, columns, stride] = *arguments;
  const MutableMatrix matrix{pointer<void>(address), data_type(type), stride};
  const int64_t bytes = rows * stride * bytes_of(matrix.type);
  if (bytes >= from_the_system) prefer_huge_pages(matrix.data, static_cast<std::size_t>(bytes));
  return matrix;
}

inline const MutableMatrix* pointer_to(const std::optional<MutableMatrix>& matrix) {
  return matrix ? &*matrix : nullptr;
}

inline const Kernels& kernels_of(const std::string& instruction_set) {
  const Kernels* kernels = find_kernels(instruction_set.c_str());
  if (kernels == nullptr) {
    throw std::invalid_argument(
        "instruction set must be auto, avx512_amx, avx512_bf16, avx512, avx2 or generic, and one that this CPU "
        "has; found " +
        instruction_set);
  }
  return *kernels;
}

// Add what stream_attention needs, and the inference engine, to the module.
void bind_stream_attention(pybind11::module_& module);
void bind_engine(pybind11::module_& module);

}  // namespace plr_kernels
