// Arrays that are read here and there: on huge pages where the system has them, for which fewer addresses must be looked
// up; those look-ups cost more than the cache misses themselves.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace plr_data {

// Not initialised.
template <class Value>
class LargeArray {
  static_assert(std::is_trivially_copyable_v<Value>);

 public:
  LargeArray() = default;
  explicit LargeArray(size_t size) : size_(size) {
#ifdef __linux__
    if (bytes() >= huge) {  // not by malloc, which keeps what is freed
      void* mapped = mmap(nullptr, bytes() + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) throw std::bad_alloc();
      auto* begin = static_cast<char*>(mapped);
      const size_t before = (huge - reinterpret_cast<uintptr_t>(begin) % huge) % huge;
      if (before > 0) munmap(begin, before);
      munmap(begin + before + bytes(), huge - before);
      madvise(begin + before, bytes(), MADV_HUGEPAGE);  // where it is refused, pages are small
      data_ = reinterpret_cast<Value*>(begin + before);
      return;
    }
#endif
    data_ = static_cast<Value*>(std::aligned_alloc(64, bytes()));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~LargeArray() {
#ifdef __linux__
    if (bytes() >= huge) {
      munmap(data_, bytes());
      return;
    }
#endif
    std::free(data_);
  }
  LargeArray(LargeArray&& other) noexcept { swap(other); }
  LargeArray& operator=(LargeArray&& other) noexcept {
    swap(other);
    return *this;
  }

  // Gives the memory of those entries back to the system, as far as it shares no page with others. They are lost.
  void give_back(size_t first, size_t last) {
#ifdef __linux__
    if (bytes() < huge) return;
    const size_t from = (first * sizeof(Value) + huge - 1) / huge * huge;
    const size_t to = last == size_ ? bytes() : last * sizeof(Value) / huge * huge;
    if (from < to) madvise(reinterpret_cast<char*>(data_) + from, to - from, MADV_DONTNEED);
#endif
  }

  size_t size() const { return size_; }
  Value* data() const { return data_; }
  Value* begin() const { return data_; }
  Value* end() const { return data_ + size_; }
  Value& operator[](size_t at) const { return data_[at]; }
  void swap(LargeArray& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

 private:
  static constexpr size_t huge = 2 << 20;  // bytes
  // What is asked for of the system: whole huge pages, or cache lines.
  size_t bytes() const {
    const size_t unit = size_ * sizeof(Value) < huge ? 64 : huge;
    return std::max<size_t>((size_ * sizeof(Value) + unit - 1) / unit, 1) * unit;
  }

  Value* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace plr_data
