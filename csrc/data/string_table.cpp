#include "string_table.h"

#include <algorithm>
#include <stdexcept>

namespace plr_data {
namespace {

constexpr int first_bits = 12;  // of the number of slots
constexpr int most_bits = 32;
constexpr int together = 64;  // strings whose cache misses are under way at once

uint64_t folded_product(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t next_key(uint64_t& state) {  // odd, so that no product is 0 for the key's sake
  state += 0x9E3779B97F4A7C15;
  uint64_t key = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9;
  key = (key ^ (key >> 27)) * 0x94D049BB133111EB;
  return (key ^ (key >> 31)) | 1;
}

bool equal(const uint8_t* a, const uint8_t* b, uint32_t length) {
  if (length < 8) return std::memcmp(a, b, length) == 0;
  uint32_t at = 0;
  for (; at + 8 < length; at += 8) {
    if (load<uint64_t>(a + at) != load<uint64_t>(b + at)) return false;
  }
  return load<uint64_t>(a + length - 8) == load<uint64_t>(b + length - 8);
}

}  // namespace

StringTable::StringTable(uint64_t seed, int hash_bits)
    : hash_mask_(hash_bits >= 32 ? UINT32_MAX : ~(UINT32_MAX >> hash_bits)),
      shift_(32 - first_bits),
      slots_(size_t{1} << first_bits) {
  std::fill(slots_.begin(), slots_.end(), Slot{0, unused});
  for (uint64_t& key : keys_) key = next_key(seed);
}

__attribute__((always_inline)) inline uint32_t StringTable::hash(Bytes string) const {
  const uint8_t* data = string.data;
  const uint32_t length = string.length;
  uint64_t state = keys_[0], a = 0, b = 0;
  if (length > 16) {
    for (uint32_t at = 0; at + 16 < length; at += 16) {
      state = folded_product(load<uint64_t>(data + at) ^ keys_[1], load<uint64_t>(data + at + 8) ^ state);
    }
    a = load<uint64_t>(data + length - 16);
    b = load<uint64_t>(data + length - 8);
  } else if (length >= 8) {
    a = load<uint64_t>(data);
    b = load<uint64_t>(data + length - 8);
  } else if (length >= 4) {
    a = load<uint32_t>(data);
    b = load<uint32_t>(data + length - 4);
  } else {
    a = uint64_t{data[0]} << 16 | uint64_t{data[length / 2]} << 8 | data[length - 1];
  }
  state = folded_product(a ^ keys_[1], b ^ state);
  return static_cast<uint32_t>(folded_product(state ^ keys_[2], keys_[1] ^ length) >> 32) & hash_mask_;
}

__attribute__((always_inline)) inline uint32_t StringTable::find_or_add(Bytes string, uint32_t tag, size_t at) {
  for (;; at = at + 1 == slots_.size() ? 0 : at + 1) {
    Slot& slot = slots_[at];
    if (slot.record == unused) {
      if (records_.size() == missing) throw std::length_error("more than 2^32 - 1 different ids");
      records_.push_back(keep(string));  // first: where memory runs out, the slot stays free
      slot = {tag, records_.back()};
      return static_cast<uint32_t>(records_.size() - 1);
    }
    if (slot.tag != tag) continue;
    const uint8_t* found = record(slot.record);
    if (load<uint32_t>(found + 4) == string.length && equal(found + 8, string.data, string.length)) {
      return load<uint32_t>(found);
    }
  }
}

bool StringTable::number(const StringViews& strings, int64_t length, uint32_t* numbers) {
  struct Run {  // of one string
    Bytes string;
    uint32_t tag;
    int64_t first, last;
    size_t slot;  // no slot before it is its own
  };
  Run runs[together];
  int64_t row = 0;
  bool any_missing = false;
  while (row < length) {
    if ((records_.size() + together) * 2 > slots_.size()) grow();
    int count = 0;
    for (; row < length; ++row) {
      const Bytes string = strings[row];
      if (string.length == 0) {
        numbers[row] = missing;
        any_missing = true;
        continue;
      }
      if (count > 0) {
        Run& former = runs[count - 1];
        if (former.last == row && former.string.length == string.length &&
            equal(former.string.data, string.data, string.length)) {
          ++former.last;
          continue;
        }
        if (count == together) break;
      }
      const uint32_t tag = hash(string);
      __builtin_prefetch(&slots_[best(tag)]);
      runs[count++] = {string, tag, row, row + 1, 0};
    }
    for (int i = 0; i < count; ++i) {
      size_t at = best(runs[i].tag);
      while (slots_[at].tag != runs[i].tag && slots_[at].record != unused) at = at + 1 == slots_.size() ? 0 : at + 1;
      runs[i].slot = at;
      if (slots_[at].record != unused) {
        const uint8_t* found = record(slots_[at].record);
        __builtin_prefetch(found);
        __builtin_prefetch(found + 8 + runs[i].string.length - 1);
      }
    }
    for (int i = 0; i < count; ++i) {
      std::fill(numbers + runs[i].first, numbers + runs[i].last, find_or_add(runs[i].string, runs[i].tag, runs[i].slot));
    }
  }
  return any_missing;
}

uint32_t StringTable::keep(Bytes string) {
  const size_t needed = 8 + size_t{string.length};
  if (chunks_.empty() || free_ + needed > chunks_.back().size()) {
    if (chunks_.size() == unused >> unit_bits) throw std::length_error("more than 32 GiB of ids");
    chunks_.emplace_back(std::max(needed, size_t{8} << unit_bits));  // what is not used of it costs nothing
    free_ = 0;
  }
  const auto number = static_cast<uint32_t>(records_.size());
  uint8_t* to = chunks_.back().data() + free_;
  std::memcpy(to, &number, 4);
  std::memcpy(to + 4, &string.length, 4);
  std::memcpy(to + 8, string.data, string.length);
  const size_t address = (chunks_.size() - 1) << unit_bits | free_ / 8;
  free_ += (needed + 7) / 8 * 8;
  return static_cast<uint32_t>(address);
}

void StringTable::grow() {
  if (shift_ == 32 - most_bits) throw std::length_error("more than 2^31 different ids");
  LargeArray<Slot> old(slots_.size() * 2);
  std::fill(old.begin(), old.end(), Slot{0, unused});
  old.swap(slots_);
  --shift_;
  for (const Slot& slot : old) {
    if (slot.record == unused) continue;
    size_t at = best(slot.tag);
    while (slots_[at].record != unused) at = at + 1 == slots_.size() ? 0 : at + 1;
    slots_[at] = slot;
  }
}

}  // namespace plr_data
