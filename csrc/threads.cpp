#include "threads.h"

#include <algorithm>
#include <system_error>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace plr_kernels {

namespace {

// Treats numbers below 1e-38 as zero while it lives: some CPUs take a hundred cycles for each of them, and small
// probabilities lie there.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }
#else
  FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  [[maybe_unused]] unsigned before_ = 0;
};

}  // namespace

Threads::Threads(int most, double work) {
  constexpr double fair_part = 1 << 22;  // takes longer than starting a thread and waiting for it
  count_ = static_cast<int>(std::clamp(work / fair_part, 1.0, static_cast<double>(std::max(most, 1))));
}

Threads::~Threads() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    over_ = true;
  }
  work_changed_.notify_all();
  for (std::thread& other : others_) other.join();
}

void Threads::start() {
  for (int thread = 1; thread < count_; ++thread) {
    try {
      others_.emplace_back([this, thread] { wait_for_work(thread); });
    } catch (const std::system_error&) {
      return;  // the machine has no more to give: those that started do the work
    }
  }
}

void Threads::wait_for_work(int thread) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_changed_.wait(lock, [this] { return over_ || next_ < tasks_; });
    if (over_) return;
    take_tasks(lock, thread);
  }
}

void Threads::take_tasks(std::unique_lock<std::mutex>& lock, int thread) {
  const FlushDenormals flush;
  while (next_ < tasks_) {
    const int64_t index = next_++;
    const Task& task = *task_;
    lock.unlock();
    std::exception_ptr failure;
    try {
      task(index, thread);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure && !failure_) failure_ = failure;
    if (--unfinished_ == 0) all_done_.notify_one();
  }
}

void Threads::run(int64_t tasks, const Task& task) {
  if (tasks == 0) return;
  const bool alone = count_ == 1 || tasks == 1;
  if (!alone && others_.empty()) start();
  std::unique_lock<std::mutex> lock(mutex_);
  task_ = &task;
  next_ = 0;
  tasks_ = unfinished_ = tasks;
  if (!alone) work_changed_.notify_all();
  take_tasks(lock, 0);
  all_done_.wait(lock, [this] { return unfinished_ == 0; });
  next_ = tasks_ = 0;
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace plr_kernels
