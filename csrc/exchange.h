// Tensors of PyTorch, read through DLPack's C exchange interface: one call of a C function per tensor, where asking for
// its address, shape and strides from Python runs a hundred lines. Newer versions of PyTorch have it (2.13 does); no
// header of it is needed.
//
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace plr_kernels::exchange {

struct Version {
  uint32_t major, minor;
};

enum DeviceType : int32_t { kCPU = 1 };
enum NumberType : uint8_t { kFloat = 2, kBfloat = 4 };

struct Tensor {
  void* data;
  DeviceType device_type;
  int32_t device;
  int32_t dimensions;
  uint8_t number_type;
  uint8_t bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in numbers
  uint64_t byte_offset;
};

struct Header {
  Version version;
  Header* previous;  // the interface in an older version, or null
};

// Those after `tensor_of` and before it are not called here.
struct Interface {
  Header header;
  void (*allocate)();
  void (*owned_tensor_of)();
  void (*object_of)();
  // What a Python object that is a tensor holds, as long as it lives; 0, or another number with a Python error set.
  int (*tensor_of)(void* object, Tensor* result);
};

// The interface in the version that is known here, or null.
inline const Interface* known(const void* interface) {
  auto* header = static_cast<const Header*>(interface);
  while (header != nullptr && header->version.major != 1) header = header->previous;
  return reinterpret_cast<const Interface*>(header);
}

}  // namespace plr_kernels::exchange
