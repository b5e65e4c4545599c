// The threads of one call of an operator.
//
// They sleep while they wait. OpenMP's threads spin: on a machine that others compute on too, a thread that has spun away
// its share of a core does not get it when there is something to do, and all others wait for it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace plr_kernels {

class Threads {
 public:
  // At most `most`, and no more than can each do a fair part of `work` multiply-adds.
  Threads(int most, double work);
  // The calling thread alone.
  Threads() : count_(1) {}
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }

  // Calls task(index, thread) for every index in [0, tasks), in any order, and returns when all have returned. `thread`
  // is in [0, count()). The first exception of a task is thrown again here, after all have returned.
  using Task = std::function<void(int64_t index, int thread)>;
  void run(int64_t tasks, const Task& task);

 private:
  void start();
  void wait_for_work(int thread);
  void take_tasks(std::unique_lock<std::mutex>& lock, int thread);

  int count_;
  std::vector<std::thread> others_;
  std::mutex mutex_;
  std::condition_variable work_changed_;
  std::condition_variable all_done_;
  // All below are guarded by the mutex.
  const Task* task_ = nullptr;
  int64_t next_ = 0;
  int64_t tasks_ = 0;
  int64_t unfinished_ = 0;
  bool over_ = false;
  std::exception_ptr failure_;
};

}  // namespace plr_kernels
