// The threads of one call of an operator.
//
// Where torch has brought an OpenMP runtime into the process, they are its threads: those still spin for a while after
// torch's own work, and any other thread would have to wait for a core until they sleep. Elsewhere, and in a process
// that was forked, they are started for each run. Nothing is linked to: an extension with an OpenMP runtime of its own
// would have two sets of spinning threads.
#pragma once

#include <cstdint>
#include <functional>

namespace plr_kernels {

class Threads {
 public:
  // At most `most`, and no more than can each do a fair part of `work` multiply-adds.
  Threads(int most, double work);
  // The same with threads that are started for the run, and end with it: none that waits in vain for more work, as those
  // of OpenMP runtimes do for a while, takes a core from others.
  static Threads of_its_own(int most, double work) {
    Threads team(most, work);
    team.of_its_own_ = true;
    return team;
  }
  // The calling thread alone, while up to `side_by_side` such threads work on parts of one call.
  static Threads alone(int side_by_side) {
    Threads one;
    one.side_by_side_ = side_by_side;
    return one;
  }

  int count() const { return count_; }
  // How many of these are at work at once and share the caches.
  int side_by_side() const { return side_by_side_; }

  // Calls task(index, thread) for every index in [0, tasks), in any order, and returns when all have returned. `thread`
  // is in [0, count()). The first exception of a task is thrown again here, after all have returned.
  using Task = std::function<void(int64_t index, int thread)>;
  void run(int64_t tasks, const Task& task) const;

 private:
  Threads() = default;

  int count_ = 1;
  int side_by_side_ = 1;
  bool of_its_own_ = false;
};

// Whether this process was forked by a thread of which `Threads` had made a master of OpenMP threads. Whoever else runs
// OpenMP on this thread with more than one, as torch does, hangs where the runtime is GNU's.
bool lost_openmp_threads();

}  // namespace plr_kernels
