// What all kernels use.
//
// Every file of this folder is written in terms of Vector, which the including file (kernels_*.cpp) defines before, and
// is local to that translation unit: no code for a wider instruction set leaks into others. For the same reason there
// are no templates of the standard library here.
#pragma once

#include <cstdint>

#include "../matrix.h"
#include "../panels.h"

namespace plr_kernels {
namespace {

constexpr int64_t kCacheLine = 64;  // bytes

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <DataType type>
struct TypeConstant {
  static constexpr DataType value = type;
};

// Calls function(TypeConstant<type>{}).
template <class Function>
inline void with_type(DataType type, const Function& function) {
  switch (type) {
    case DataType::float16:
      return function(TypeConstant<DataType::float16>{});
    case DataType::bfloat16:
      return function(TypeConstant<DataType::bfloat16>{});
    default:
      return function(TypeConstant<DataType::float32>{});
  }
}

}  // namespace
}  // namespace plr_kernels
