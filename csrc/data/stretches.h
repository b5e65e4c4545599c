// Long arrays, a stretch for each thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../threads.h"

namespace plr_data {

constexpr double work_of_one = 32;  // of one entry, in the unit that plr_kernels::Threads counts in

// Calls task(first, last, stretch) for as many stretches of [0, length) as there are threads.
template <class Task>
void in_stretches(const plr_kernels::Threads& threads, size_t length, const Task& task) {
  const size_t stretches = threads.count();
  threads.run(static_cast<int64_t>(stretches), [&](int64_t stretch, int) {
    task(length * stretch / stretches, length * (stretch + 1) / stretches, stretch);
  });
}

}  // namespace plr_data
