// Uninitialised float32 memory, aligned to a cache line.
#pragma once

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace plr_kernels {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Asks for huge pages for memory that is to be written for the first time: fewer to fault in, and to translate. A wish:
// it may be refused, and changes nothing about pages that are there.
inline void prefer_huge_pages(void* data, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // NOLINT: whole pages of data
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size)
      : data_(static_cast<float*>(::operator new(static_cast<std::size_t>(size) * sizeof(float), kAlignment))) {}
  Buffer(int64_t size, float value) : Buffer(size) { std::fill_n(data(), size, value); }

  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  float& operator[](int64_t i) { return data_.get()[i]; }
  float operator[](int64_t i) const { return data_.get()[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<float, Free> data_;
};

// The same for much of it, in huge pages where the system has them.
class HugeBuffer {
 public:
  explicit HugeBuffer(int64_t size) : bytes_(static_cast<std::size_t>(size) * sizeof(float)) {
    const std::align_val_t alignment{bytes_ < kHugePage ? kCacheLine : kHugePage};
    data_ = {static_cast<float*>(::operator new(bytes_, alignment)), Free{alignment}};
    prefer_huge_pages(data_.get(), bytes_);
  }
  float* data() { return data_.get(); }

 private:
  static constexpr std::size_t kCacheLine = 64;
  struct Free {
    std::align_val_t alignment;
    void operator()(float* data) const { ::operator delete(data, alignment); }
  };
  std::size_t bytes_;
  std::unique_ptr<float, Free> data_{nullptr, Free{std::align_val_t{kCacheLine}}};
};

}  // namespace plr_kernels
