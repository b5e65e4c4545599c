#include "string_table.h"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "stretches.h"

namespace plr_data {
namespace {

constexpr int first_bits = 12;  // of the number of slots
constexpr int most_bits = 32;
constexpr int together = 64;  // strings whose cache misses are under way at once

template <class Word>
uint64_t load(const uint8_t* data) {
  Word word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

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

// Up to eight bytes from `from` on as a number that compares as they do; zeros follow.
uint64_t sort_key(Bytes string, uint32_t from) {
  uint64_t key = 0;
  const uint32_t count = std::min<uint32_t>(8, string.length - from);
  for (uint32_t i = 0; i < count; ++i) key |= static_cast<uint64_t>(string.data[from + i]) << (56 - 8 * i);
  return key;
}

bool before(Bytes a, Bytes b) {
  const int order = std::memcmp(a.data, b.data, std::min(a.length, b.length));
  return order != 0 ? order < 0 : a.length < b.length;
}

struct Keyed {
  uint64_t key;
  uint32_t number;
};

// Sorts by key, one byte after the other from the lowest, without the bytes that are the same in all.
void radix_sort(LargeArray<Keyed>& values) {
  std::vector<std::array<uint32_t, 256>> counts(8, std::array<uint32_t, 256>{});
  for (const Keyed& value : values) {
    for (int byte = 0; byte < 8; ++byte) ++counts[byte][value.key >> (8 * byte) & 255];
  }
  LargeArray<Keyed> other(values.size());
  for (int byte = 0; byte < 8; ++byte) {
    auto& count = counts[byte];
    if (count[values[0].key >> (8 * byte) & 255] == values.size()) continue;
    uint32_t start = 0;
    for (uint32_t& entry : count) {
      const uint32_t those = entry;
      entry = start;
      start += those;
    }
    for (const Keyed& value : values) other[count[value.key >> (8 * byte) & 255]++] = value;
    values.swap(other);
  }
}

}  // namespace

StringTable::StringTable(uint64_t seed, int hash_bits)
    : hash_mask_(hash_bits >= 32 ? UINT32_MAX : ~(UINT32_MAX >> hash_bits)),
      shift_(32 - first_bits),
      slots_(size_t{1} << first_bits) {
  std::fill(slots_.begin(), slots_.end(), Slot{0, unused});
  for (uint64_t& key : keys_) key = next_key(seed);
}

Bytes StringTable::operator[](int64_t number) const {
  const uint8_t* found = record(records_[number]);
  return {found + 8, static_cast<uint32_t>(load<uint32_t>(found + 4))};
}

uint32_t StringTable::hash(Bytes string) const {
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

bool StringTable::number(const StringViews& strings, int64_t length, uint32_t* numbers) {
  struct Run {  // of one string
    Bytes string;
    uint32_t tag;
    int64_t first, last;
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
      runs[count++] = {string, tag, row, row + 1};
    }
    for (int i = 0; i < count; ++i) {
      size_t at = best(runs[i].tag);
      while (slots_[at].tag != runs[i].tag && slots_[at].record != unused) at = at + 1 == slots_.size() ? 0 : at + 1;
      if (slots_[at].record != unused) {
        const uint8_t* found = record(slots_[at].record);
        __builtin_prefetch(found);
        __builtin_prefetch(found + 8 + runs[i].string.length - 1);
      }
    }
    for (int i = 0; i < count; ++i) {
      std::fill(numbers + runs[i].first, numbers + runs[i].last, find_or_add(runs[i].string, runs[i].tag));
    }
  }
  return any_missing;
}

uint32_t StringTable::find_or_add(Bytes string, uint32_t tag) {
  for (size_t at = best(tag);; at = at + 1 == slots_.size() ? 0 : at + 1) {
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
      return static_cast<uint32_t>(load<uint32_t>(found));
    }
  }
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

LargeArray<uint32_t> StringTable::sorted(int threads) const {
  const auto count = static_cast<uint32_t>(records_.size());
  LargeArray<uint32_t> order(count);
  if (count == 0) return order;
  const plr_kernels::Threads run(threads, work_of_one * count);
  const Bytes one = (*this)[0];
  std::vector<uint32_t> shared_of(run.count(), one.length);  // how many bytes all begin with
  in_stretches(run, count, [&](size_t first, size_t last, int64_t stretch) {
    uint32_t shared = shared_of[stretch];
    for (size_t number = first; number < last; ++number) {
      const Bytes other = (*this)[number];
      shared = std::min(shared, other.length);
      if (std::memcmp(one.data, other.data, shared) != 0) {
        shared = static_cast<uint32_t>(std::mismatch(one.data, one.data + shared, other.data).first - one.data);
      }
    }
    shared_of[stretch] = shared;
  });
  const uint32_t shared = *std::min_element(shared_of.begin(), shared_of.end());
  LargeArray<Keyed> values(count);
  in_stretches(run, count, [&](size_t first, size_t last, int64_t) {
    for (size_t number = first; number < last; ++number) {
      values[number] = {sort_key((*this)[number], shared), static_cast<uint32_t>(number)};
    }
  });
  radix_sort(values);
  for (uint32_t first = 0, last; first < count; first = last) {
    for (last = first + 1; last < count && values[last].key == values[first].key; ++last) {
    }
    if (last - first > 1) {
      std::sort(values.begin() + first, values.begin() + last,
                [this](const Keyed& a, const Keyed& b) { return before((*this)[a.number], (*this)[b.number]); });
    }
  }
  for (uint32_t place = 0; place < count; ++place) order[place] = values[place].number;
  return order;
}

}  // namespace plr_data
