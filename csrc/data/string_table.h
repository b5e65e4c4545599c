// Numbers for strings: equal ones and only equal ones share a number.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "arrow.h"
#include "large_array.h"

namespace plr_data {

template <class Word>
Word load(const uint8_t* data) {
  Word word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

struct Bytes {
  const uint8_t* data;
  uint32_t length;
};

// The strings of one column of string views ("vu"); `array` must outlive it.
class StringViews {
 public:
  explicit StringViews(const ArrowArray& array)
      : validity_(array.null_count == 0 ? nullptr : static_cast<const uint8_t*>(array.buffers[0])),
        views_(static_cast<const uint8_t*>(array.buffers[1])),
        buffers_(reinterpret_cast<const uint8_t* const*>(array.buffers + 2)),
        first_(array.offset) {}

  // The string of a row; null is the empty one.
  Bytes operator[](int64_t row) const {
    row += first_;
    if (validity_ != nullptr && !(validity_[row >> 3] >> (row & 7) & 1)) return {nullptr, 0};
    const uint8_t* view = views_ + 16 * row;  // length; then the bytes, or from 13 on: first four, buffer, offset
    uint32_t length, buffer, offset;  // signed by the specification; polars counts offsets up to 4 GiB
    std::memcpy(&length, view, 4);
    if (length <= 12) return {view + 4, length};
    std::memcpy(&buffer, view + 8, 4);
    std::memcpy(&offset, view + 12, 4);
    return {buffers_[buffer] + offset, length};
  }

 private:
  const uint8_t* validity_;
  const uint8_t* views_;
  const uint8_t* const* buffers_;
  int64_t first_;
};

// A hash table with open addressing that keeps a copy of every string. A string gets a number only after all of its
// bytes were compared. Not for several threads at once.
class StringTable {
 public:
  static constexpr uint32_t missing = UINT32_MAX;  // the number of null and of the empty string

  // The seed should be secret, so that no file can be made of strings with one hash. `hash_bits` below 32 make
  // collisions, for tests.
  explicit StringTable(uint64_t seed, int hash_bits = 32);

  int64_t size() const { return static_cast<int64_t>(records_.size()); }
  Bytes operator[](int64_t number) const { return string_at(records_[number]); }

  // Writes the number of each of the `length` strings. New ones get the next numbers. Returns whether any is missing.
  bool number(const StringViews& strings, int64_t length, uint32_t* numbers);


  // Where a string is kept, which tells it and its number faster than the number tells the string.
  uint32_t address(int64_t number) const { return records_[number]; }
  Bytes string_at(uint32_t address) const {
    const uint8_t* found = record(address);
    return {found + 8, load<uint32_t>(found + 4)};
  }
  uint32_t number_at(uint32_t address) const { return load<uint32_t>(record(address)); }
  // Tells the processor that a string of this length will be read.
  void prefetch(uint32_t address, uint32_t length) const {
    __builtin_prefetch(record(address));
    __builtin_prefetch(record(address) + 7 + length);
  }

 private:
  // Eight bytes, for the cache cannot hold them all and every look-up needs one.
  struct Slot {
    uint32_t tag;  // the hash; its upper bits say where the slot would best be
    uint32_t record;  // unused: free
  };
  static constexpr uint32_t unused = UINT32_MAX;
  static constexpr int unit_bits = 20;  // of a record's address: units of eight bytes in its chunk; above, the chunk

  uint32_t hash(Bytes string) const;
  size_t best(uint32_t tag) const { return tag >> shift_; }
  const uint8_t* record(uint32_t address) const {
    return chunks_[address >> unit_bits].data() + 8 * (address & ((1 << unit_bits) - 1));
  }
  uint32_t find_or_add(Bytes string, uint32_t tag, size_t at);
  uint32_t keep(Bytes string);
  void grow();

  uint64_t keys_[3];
  uint32_t hash_mask_;
  int shift_;
  LargeArray<Slot> slots_;
  std::vector<uint32_t> records_;  // by number: where it and the length stand, four bytes each, then the string
  std::vector<LargeArray<uint8_t>> chunks_;
  size_t free_ = 0;  // the first byte of the last chunk that is
};

}  // namespace plr_data
