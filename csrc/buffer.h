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

// The same for much of it, in huge pages where the system has them: fewer to fault in, and to translate.
class HugeBuffer {
 public:
  explicit HugeBuffer(int64_t size) : bytes_(static_cast<std::size_t>(size) * sizeof(float)) {
    const std::align_val_t alignment{bytes_ < kPage ? kCacheLine : kPage};
    data_ = {static_cast<float*>(::operator new(bytes_, alignment)), Free{alignment}};
#ifdef MADV_HUGEPAGE
    if (bytes_ >= kPage) madvise(data_.get(), bytes_ / kPage * kPage, MADV_HUGEPAGE);  // a wish: it may be refused
#endif
  }
  float* data() { return data_.get(); }

 private:
  static constexpr std::size_t kPage = std::size_t{2} << 20, kCacheLine = 64;
  struct Free {
    std::align_val_t alignment;
    void operator()(float* data) const { ::operator delete(data, alignment); }
  };
  std::size_t bytes_;
  std::unique_ptr<float, Free> data_{nullptr, Free{std::align_val_t{kCacheLine}}};
};

}  // namespace plr_kernels
