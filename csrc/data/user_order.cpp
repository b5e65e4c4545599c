#include "user_order.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "stretches.h"

namespace plr_data {
namespace {

constexpr int64_t most_parts = 1024;  // more would be more places to write to than the cache holds
constexpr int64_t fair_part = 1 << 15;  // interactions
constexpr int64_t chunk = 512;  // records
constexpr int64_t ahead = 32;  // rows whose ranks are on their way into the cache
constexpr uint32_t positive_bit = uint32_t{1} << 31;

int64_t time_of(const uint32_t (&halves)[2]) {
  int64_t time;
  std::memcpy(&time, halves, sizeof(time));
  return time;
}

}  // namespace

UserOrder::UserOrder(const std::vector<Block>& blocks, Ranks user_ranks, Ranks item_ranks, int threads)
    : users_(user_ranks.size),
      threads_(threads),
      with_time_(!blocks.empty() && blocks[0].time != nullptr),
      with_positive_(!blocks.empty() && blocks[0].positive != nullptr) {
  std::vector<int64_t> begins;  // of every block
  for (const Block& block : blocks) {
    begins.push_back(length_);
    length_ += block.length;
  }
  if (length_ > UINT32_MAX) throw std::length_error("more than 2^32 - 1 interactions");
  while ((users_ >> shift_) > std::clamp<int64_t>(length_ / fair_part, 1, most_parts)) ++shift_;
  const int64_t parts = (users_ >> shift_) + 1;
  const plr_kernels::Threads run(threads, work_of_one * static_cast<double>(length_));
  chunks_.assign(parts, std::vector<Chunks>(run.count()));
  records_ = LargeArray<Record>((length_ / chunk + parts * run.count() + 1) * chunk);  // what is not used costs nothing
  std::atomic<Record*> free{records_.data()};
  in_stretches(run, blocks.size(), [&](size_t first, size_t last, int64_t stretch) {
    struct Cursor {
      Record* next = nullptr;
      Record* end = nullptr;
    };
    std::vector<Cursor> cursors(parts);
    for (size_t b = first; b < last; ++b) {
      const Block& block = blocks[b];
      for (int64_t row = 0; row < block.length; ++row) {
        const uint32_t coming = block.user[std::min(row + ahead, block.length - 1)];
        __builtin_prefetch(user_ranks.data + (coming < user_ranks.size ? coming : 0));
        if (block.user[row] >= user_ranks.size) throw std::out_of_range("a user's number has no rank");
        if (block.item[row] >= item_ranks.size) throw std::out_of_range("an item's number has no rank");
        const auto user = static_cast<uint32_t>(user_ranks.data[block.user[row]]);
        Cursor& cursor = cursors[user >> shift_];
        if (cursor.next == cursor.end) {
          cursor.next = free.fetch_add(chunk);
          cursor.end = cursor.next + chunk;
          chunks_[user >> shift_][stretch].begins.push_back(cursor.next);
        }
        Record& record = *cursor.next++;
        record.user = user;
        record.item = item_ranks.data[block.item[row]];
        if (with_positive_ && block.positive[row]) record.item |= positive_bit;
        record.place = static_cast<uint32_t>(begins[b] + row);
        if (with_time_) std::memcpy(record.time, block.time + row, sizeof(record.time));
      }
    }
    for (int64_t part = 0; part < parts; ++part) chunks_[part][stretch].end = cursors[part].next;
  });
}

template <class Use>
void UserOrder::each(int64_t part, const Use& use) const {
  for (const Chunks& chunks : chunks_[part]) {
    for (size_t i = 0; i < chunks.begins.size(); ++i) {
      const Record* end = i + 1 < chunks.begins.size() ? chunks.begins[i] + chunk : chunks.end;
      for (const Record* record = chunks.begins[i]; record != end; ++record) use(*record);
    }
  }
}

void UserOrder::write(const Columns& columns) const {
  const plr_kernels::Threads run(threads_, work_of_one * static_cast<double>(length_));
  struct Scratch {
    std::vector<uint32_t> ends;
    std::vector<Record> records;
  };
  std::vector<Scratch> scratch(run.count());
  std::vector<int64_t> starts{0};  // of every part
  for (const std::vector<Chunks>& part : chunks_) {
    starts.push_back(starts.back());
    for (const Chunks& chunks : part) {
      if (!chunks.begins.empty()) starts.back() += chunk * (chunks.begins.size() - 1) + (chunks.end - chunks.begins.back());
    }
  }
  run.run(static_cast<int64_t>(chunks_.size()), [&](int64_t part, int thread) {
    write_part(part, starts[part], starts[part + 1] - starts[part], columns, scratch[thread].ends, scratch[thread].records);
  });
  columns.offsets[users_] = length_;
}

void UserOrder::write_part(int64_t part, int64_t to, uint32_t count, const Columns& columns, std::vector<uint32_t>& ends,
                           std::vector<Record>& sorted) const {
  const auto first_user = static_cast<uint32_t>(part << shift_);
  ends.assign(size_t{1} << shift_, 0);
  each(part, [&](const Record& record) { ++ends[record.user - first_user]; });
  uint32_t start = 0;
  for (size_t user = 0; user < ends.size(); ++user) {
    if (first_user + user < static_cast<uint64_t>(users_)) columns.offsets[first_user + user] = to + start;
    const uint32_t those = ends[user];
    ends[user] = start;  // for now where each begins
    start += those;
  }
  sorted.resize(count);
  each(part, [&](const Record& record) { sorted[ends[record.user - first_user]++] = record; });
  if (with_time_) {
    const auto earlier = [](const Record& a, const Record& b) { return time_of(a.time) < time_of(b.time); };
    uint32_t first = 0;
    for (const uint32_t end : ends) {
      const auto begin = sorted.begin() + first, stop = sorted.begin() + end;
      if (!std::is_sorted(begin, stop, earlier)) std::stable_sort(begin, stop, earlier);
      first = end;
    }
  }
  for (uint32_t row = 0; row < count; ++row) columns.item[to + row] = static_cast<int32_t>(sorted[row].item & ~positive_bit);
  for (uint32_t row = 0; row < count; ++row) columns.place[to + row] = sorted[row].place;
  if (with_time_) {
    for (uint32_t row = 0; row < count; ++row) columns.time[to + row] = time_of(sorted[row].time);
  }
  if (with_positive_) {
    for (uint32_t row = 0; row < count; ++row) columns.positive[to + row] = (sorted[row].item & positive_bit) != 0;
  }
}

}  // namespace plr_data
