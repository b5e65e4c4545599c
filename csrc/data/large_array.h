// Arrays that are read here and there: on huge pages where the system has them, for which fewer addresses must be looked
// up; those look-ups cost more than the cache misses themselves.
#pragma once

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
    const size_t page = size * sizeof(Value) < huge ? 64 : huge;
    const size_t bytes = (size * sizeof(Value) + page - 1) / page * page;
    data_ = static_cast<Value*>(std::aligned_alloc(page, bytes == 0 ? page : bytes));
    if (data_ == nullptr) throw std::bad_alloc();
#ifdef __linux__
    if (page == huge) madvise(data_, bytes, MADV_HUGEPAGE);  // where it is refused, pages are small
#endif
  }
  ~LargeArray() { std::free(data_); }
  LargeArray(LargeArray&& other) noexcept { swap(other); }
  LargeArray& operator=(LargeArray&& other) noexcept {
    swap(other);
    return *this;
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
  Value* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace plr_data
