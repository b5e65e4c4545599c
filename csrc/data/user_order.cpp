#include "user_order.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "stretches.h"

namespace plr_data {
namespace {

constexpr int64_t most_parts = 1024;  // more would be more places to write to than the cache holds
constexpr int64_t fair_part = 1 << 15;  // interactions
constexpr size_t most_together = 1 << 20;  // of them
constexpr int64_t ahead = 32;  // rows whose ranks are on their way into the cache
constexpr uint32_t positive_bit = uint32_t{1} << 31;

int64_t time_of(const uint32_t (&halves)[2]) {
  int64_t time;
  std::memcpy(&time, halves, sizeof(time));
  return time;
}

}  // namespace

UserOrder::UserOrder(const std::vector<Block>& blocks, Ranks user_ranks, Ranks item_ranks, int threads,
                     const std::function<void(size_t)>& consumed)
    : users_(user_ranks.size),
      threads_(threads),
      with_time_(!blocks.empty() && blocks[0].time != nullptr),
      with_positive_(!blocks.empty() && blocks[0].positive != nullptr) {
  std::vector<int64_t> first_of;  // every block
  for (const Block& block : blocks) {
    first_of.push_back(length_);
    length_ += block.length;
  }
  if (length_ > UINT32_MAX) throw std::length_error("more than 2^32 - 1 interactions");
  while ((users_ >> shift_) > std::clamp<int64_t>(length_ / fair_part, 1, most_parts)) ++shift_;
  const int64_t parts = (users_ >> shift_) + 1;
  const plr_kernels::Threads run(threads, work_of_one * static_cast<double>(length_));
  const auto rank_of = [&](const Block& block, int64_t row) {
    const uint32_t coming = block.user[std::min(row + ahead, block.length - 1)];
    __builtin_prefetch(user_ranks.data + (coming < user_ranks.size ? coming : 0));
    if (block.user[row] >= user_ranks.size) throw std::out_of_range("a user's number has no rank");
    return static_cast<uint32_t>(user_ranks.data[block.user[row]]);
  };
  std::vector<std::vector<uint32_t>> counts(run.count());  // of every part, by thread
  in_stretches(run, blocks.size(), [&](size_t first, size_t last, int64_t stretch) {
    std::vector<uint32_t> count(parts);
    for (size_t b = first; b < last; ++b) {
      for (int64_t row = 0; row < blocks[b].length; ++row) ++count[rank_of(blocks[b], row) >> shift_];
    }
    counts[stretch] = std::move(count);
  });
  records_ = LargeArray<Record>(length_);
  std::vector<std::vector<Record*>> next(run.count(), std::vector<Record*>(parts));  // where each thread goes on
  begins_.push_back(0);
  for (int64_t part = 0; part < parts; ++part) {
    begins_.push_back(begins_.back());
    for (int thread = 0; thread < run.count(); ++thread) {
      next[thread][part] = records_.data() + begins_.back();
      begins_.back() += counts[thread][part];
    }
  }
  in_stretches(run, blocks.size(), [&](size_t first, size_t last, int64_t stretch) {
    for (size_t b = first; b < last; ++b) {
      const Block& block = blocks[b];
      for (int64_t row = 0; row < block.length; ++row) {
        if (block.item[row] >= item_ranks.size) throw std::out_of_range("an item's number has no rank");
        const uint32_t user = rank_of(block, row);
        Record& record = *next[stretch][user >> shift_]++;
        record.user = user;
        record.item = item_ranks.data[block.item[row]];
        if (with_positive_ && block.positive[row]) record.item |= positive_bit;
        record.place = static_cast<uint32_t>(first_of[b] + row);
        if (with_time_) std::memcpy(record.time, block.time + row, sizeof(record.time));
      }
      consumed(b);
    }
  });
}

void UserOrder::write(const Columns& columns) {
  if (begins_.empty()) throw std::logic_error("they were written before");
  const std::vector<size_t> begins = std::move(begins_);
  begins_.clear();
  const plr_kernels::Threads run(threads_, work_of_one * static_cast<double>(length_));
  struct Scratch {
    std::vector<uint32_t> ends;
    std::vector<Record> sorted;
  };
  std::vector<Scratch> scratch(run.count());
  // Several parts together: they leave more whole pages to give back.
  const size_t together = std::min<size_t>(length_ / (8 * run.count()), most_together) + 1;
  std::vector<int64_t> firsts{0};
  const auto parts = static_cast<int64_t>(begins.size()) - 1;
  for (int64_t part = 1; part <= parts; ++part) {
    if (part == parts || begins[part] - begins[firsts.back()] >= together) firsts.push_back(part);
  }
  run.run(static_cast<int64_t>(firsts.size()) - 1, [&](int64_t group, int thread) {
    for (int64_t part = firsts[group]; part < firsts[group + 1]; ++part) {
      write_part(part, begins, columns, scratch[thread].ends, scratch[thread].sorted);
    }
    records_.give_back(begins[firsts[group]], begins[firsts[group + 1]]);
  });
  columns.offsets[users_] = length_;
}

void UserOrder::write_part(int64_t part, const std::vector<size_t>& begins, const Columns& columns,
                           std::vector<uint32_t>& ends, std::vector<Record>& sorted) const {
  const size_t to = begins[part];
  const auto count = static_cast<uint32_t>(begins[part + 1] - to);
  const Record *first_record = records_.data() + to, *end_record = first_record + count;
  const auto first_user = static_cast<uint32_t>(part << shift_);
  ends.assign(size_t{1} << shift_, 0);
  for (const Record* record = first_record; record != end_record; ++record) ++ends[record->user - first_user];
  uint32_t start = 0;
  for (size_t user = 0; user < ends.size(); ++user) {
    if (first_user + user < static_cast<uint64_t>(users_)) columns.offsets[first_user + user] = to + start;
    const uint32_t those = ends[user];
    ends[user] = start;  // for now where each begins
    start += those;
  }
  sorted.resize(count);
  for (const Record* record = first_record; record != end_record; ++record) {
    sorted[ends[record->user - first_user]++] = *record;
  }
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
