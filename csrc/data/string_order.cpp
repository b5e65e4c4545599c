#include "string_order.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "stretches.h"

namespace plr_data {
namespace {

constexpr int first_shift = 48;  // of a key: what is above is looked at first
constexpr int64_t firsts = int64_t{1} << (64 - first_shift);
constexpr size_t few = 64;  // strings that are sorted faster by comparing them

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

// Sorts by key, one byte after the other from the lowest, without the bytes that are the same in all. Needs as much room.
void radix_sort(Ordered* values, size_t count, Ordered* room) {
  std::array<std::array<uint32_t, 256>, 8> counts{};
  for (size_t i = 0; i < count; ++i) {
    for (int byte = 0; byte < 8; ++byte) ++counts[byte][values[i].key >> (8 * byte) & 255];
  }
  Ordered *from = values, *to = room;
  for (int byte = 0; byte < 8; ++byte) {
    auto& places = counts[byte];
    if (places[values[0].key >> (8 * byte) & 255] == count) continue;
    uint32_t start = 0;
    for (uint32_t& entry : places) {
      const uint32_t those = entry;
      entry = start;
      start += those;
    }
    for (size_t i = 0; i < count; ++i) to[places[from[i].key >> (8 * byte) & 255]++] = from[i];
    std::swap(from, to);
  }
  if (from != values) std::copy(from, from + count, values);
}

void sort(const StringTable& table, Ordered* values, size_t count, Ordered* room) {
  const auto earlier = [&](const Ordered& a, const Ordered& b) {
    return a.key != b.key ? a.key < b.key : before(table.string_at(a.address), table.string_at(b.address));
  };
  if (count <= few) {
    std::sort(values, values + count, earlier);
    return;
  }
  radix_sort(values, count, room);
  for (size_t first = 0, last; first < count; first = last) {
    for (last = first + 1; last < count && values[last].key == values[first].key; ++last) {
    }
    if (last - first > 1) std::sort(values + first, values + last, earlier);
  }
}

// How many bytes all strings begin with.
uint32_t shared_by_all(const StringTable& table, const plr_kernels::Threads& run) {
  const Bytes one = table[0];
  std::vector<uint32_t> shared_of(run.count(), one.length);
  in_stretches(run, table.size(), [&](size_t first, size_t last, int64_t stretch) {
    uint32_t shared = shared_of[stretch];
    for (size_t number = first; number < last; ++number) {
      const Bytes other = table[number];
      shared = std::min(shared, other.length);
      if (std::memcmp(one.data, other.data, shared) != 0) {
        shared = static_cast<uint32_t>(std::mismatch(one.data, one.data + shared, other.data).first - one.data);
      }
    }
    shared_of[stretch] = shared;
  });
  return *std::min_element(shared_of.begin(), shared_of.end());
}

}  // namespace

LargeArray<Ordered> in_order(const StringTable& table, int threads) {
  const auto count = static_cast<size_t>(table.size());
  LargeArray<Ordered> values(count);
  if (count == 0) return values;
  const plr_kernels::Threads run(threads, work_of_one * static_cast<double>(count));
  const uint32_t shared = shared_by_all(table, run);
  LargeArray<Ordered> room(count);
  // Strings with the same first two bytes come together: mostly so few that a thread sorts them in its cache.
  std::vector<std::vector<uint32_t>> places(run.count(), std::vector<uint32_t>(firsts));
  in_stretches(run, count, [&](size_t first, size_t last, int64_t stretch) {
    for (size_t number = first; number < last; ++number) {
      const Bytes string = table[number];
      room[number] = {sort_key(string, shared), table.address(number), string.length};
      ++places[stretch][room[number].key >> first_shift];
    }
  });
  std::vector<uint32_t> begins(firsts + 1);
  for (int64_t value = 0; value < firsts; ++value) {
    uint32_t place = begins[value];
    for (auto& of : places) {
      const uint32_t those = of[value];
      of[value] = place;
      place += those;
    }
    begins[value + 1] = place;
  }
  in_stretches(run, count, [&](size_t first, size_t last, int64_t stretch) {
    for (size_t number = first; number < last; ++number) {
      values[places[stretch][room[number].key >> first_shift]++] = room[number];
    }
  });
  run.run(firsts, [&](int64_t value, int) {
    const size_t first = begins[value], those = begins[value + 1] - first;
    if (those > 0) sort(table, values.data() + first, those, room.data() + first);
  });
  return values;
}

}  // namespace plr_data
