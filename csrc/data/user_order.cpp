#include "user_order.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "stretches.h"

namespace plr_data {
namespace {

constexpr int64_t most_parts = 1024;  // more would be more places to write to than the cache holds
constexpr int64_t fair_part = 1 << 15;  // interactions
constexpr uint32_t positive_bit = uint32_t{1} << 31;

int64_t time_of(const uint32_t (&halves)[2]) {
  int64_t time;
  std::memcpy(&time, halves, sizeof(time));
  return time;
}

}  // namespace

UserOrder::UserOrder(const InputColumns& columns, int64_t length, int64_t users, int threads)
    : length_(length),
      users_(users),
      threads_(threads),
      with_time_(columns.time != nullptr),
      with_positive_(columns.positive != nullptr),
      records_(length) {
  if (length > UINT32_MAX) throw std::length_error("more than 2^32 - 1 interactions");
  while ((users >> shift_) > std::clamp<int64_t>(length / fair_part, 1, most_parts)) ++shift_;
  const int64_t parts = (users >> shift_) + 1;
  const plr_kernels::Threads run(threads, work_of_one * static_cast<double>(length));
  const int64_t stretches = run.count();
  const auto first_of = [&](int64_t stretch) { return length * stretch / stretches; };

  std::vector<std::vector<int64_t>> next(stretches, std::vector<int64_t>(parts));  // of each stretch in each part
  run.run(stretches, [&](int64_t stretch, int) {
    bool outside = false;
    for (int64_t row = first_of(stretch); row < first_of(stretch + 1); ++row) {
      const int64_t user = columns.user[row];
      if (user < 0 || user >= users) {
        outside = true;
        break;
      }
      ++next[stretch][user >> shift_];
    }
    if (outside) throw std::out_of_range("a user's number is not below the number of users");
  });
  int64_t start = 0;
  for (int64_t part = 0; part < parts; ++part) {
    starts_.push_back(start);
    for (auto& of_stretch : next) {
      const int64_t count = of_stretch[part];
      of_stretch[part] = start;
      start += count;
    }
  }
  starts_.push_back(start);
  run.run(stretches, [&](int64_t stretch, int) {
    for (int64_t row = first_of(stretch); row < first_of(stretch + 1); ++row) {
      Record& record = records_[next[stretch][columns.user[row] >> shift_]++];
      record.user = columns.user[row];
      record.item = columns.item[row];
      if (with_positive_ && columns.positive[row]) record.item |= positive_bit;
      record.place = static_cast<uint32_t>(row);
      if (with_time_) std::memcpy(record.time, columns.time + row, sizeof(record.time));
    }
  });
}

void UserOrder::write(const OutputColumns& columns, uint32_t* place) const {
  const plr_kernels::Threads run(threads_, work_of_one * static_cast<double>(length_));
  struct Scratch {
    std::vector<uint32_t> ends;
    std::vector<Record> records;
  };
  std::vector<Scratch> scratch(run.count());
  run.run(static_cast<int64_t>(starts_.size()) - 1, [&](int64_t part, int thread) {
    write_part(part, columns, place, scratch[thread].ends, scratch[thread].records);
  });
}

void UserOrder::write_part(int64_t part, const OutputColumns& columns, uint32_t* place, std::vector<uint32_t>& ends,
                           std::vector<Record>& sorted) const {
  const Record* records = records_.data() + starts_[part];
  const auto count = static_cast<uint32_t>(starts_[part + 1] - starts_[part]);
  const auto first_user = static_cast<uint32_t>(part << shift_);
  ends.assign(size_t{1} << shift_, 0);
  for (uint32_t row = 0; row < count; ++row) ++ends[records[row].user - first_user];
  uint32_t start = 0;
  for (uint32_t& end : ends) {  // for now where each begins
    const uint32_t those = end;
    end = start;
    start += those;
  }
  sorted.resize(count);
  for (uint32_t row = 0; row < count; ++row) sorted[ends[records[row].user - first_user]++] = records[row];
  if (with_time_) {
    const auto earlier = [](const Record& a, const Record& b) { return time_of(a.time) < time_of(b.time); };
    uint32_t first = 0;
    for (const uint32_t end : ends) {
      const auto begin = sorted.begin() + first, stop = sorted.begin() + end;
      if (!std::is_sorted(begin, stop, earlier)) std::stable_sort(begin, stop, earlier);
      first = end;
    }
  }
  const int64_t to = starts_[part];
  for (uint32_t row = 0; row < count; ++row) columns.user[to + row] = static_cast<int32_t>(sorted[row].user);
  for (uint32_t row = 0; row < count; ++row) columns.item[to + row] = static_cast<int32_t>(sorted[row].item & ~positive_bit);
  for (uint32_t row = 0; row < count; ++row) place[to + row] = sorted[row].place;
  if (with_time_) {
    for (uint32_t row = 0; row < count; ++row) columns.time[to + row] = time_of(sorted[row].time);
  }
  if (with_positive_) {
    for (uint32_t row = 0; row < count; ++row) columns.positive[to + row] = (sorted[row].item & positive_bit) != 0;
  }
}

}  // namespace plr_data
