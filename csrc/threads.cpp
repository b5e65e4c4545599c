#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

#if __has_include(<pthread.h>)
#include <pthread.h>
#endif

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

// Tasks that threads take one by one.
class Tasks {
 public:
  Tasks(int64_t count, const Threads::Task& task) : count_(count), task_(task) {}

  // What every thread runs.
  static void take(void* tasks) { static_cast<Tasks*>(tasks)->take_all(); }

  void rethrow() {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void take_all() {
    const FlushDenormals flush;
    const int thread = threads_++;
    for (int64_t index = next_++; index < count_; index = next_++) {
      try {
        task_(index, thread);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
    }
  }

  const int64_t count_;
  const Threads::Task& task_;
  std::atomic<int64_t> next_{0};
  std::atomic<int> threads_{0};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

// Runs function(argument) on at most `threads` threads at once, this one among them: what a compiler makes of
// `#pragma omp parallel`, under the name by which the runtimes of GCC, LLVM and Intel have it.
using OpenMPParallel = void (*)(void (*function)(void*), void* argument, unsigned threads, unsigned flags);

// That of the runtime in the process, or null.
OpenMPParallel find_openmp() {
  // ThreadSanitizer does not see the barriers of a runtime that was not compiled for it.
#if __has_include(<dlfcn.h>) && !defined(__SANITIZE_THREAD__)
  return reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

// A child that was forked has none of its parent's threads, but GNU's runtime remembers those of the thread that forked
// and waits for them for ever.
thread_local bool openmp_was_used = false;  // by this thread, here
bool forked = false;
bool openmp_was_lost = false;

#if __has_include(<pthread.h>)
[[maybe_unused]] const int noticed = pthread_atfork(nullptr, nullptr, [] {
  forked = true;
  openmp_was_lost = openmp_was_used;
});
#endif

void run_on_new_threads(int count, Tasks& tasks) {
  std::vector<std::thread> others;
  others.reserve(count);  // so that nothing but a thread's start can fail below
  try {
    for (int other = 1; other < count; ++other) others.emplace_back(Tasks::take, &tasks);
  } catch (const std::system_error&) {
    // The machine has no more to give: those that started do the work.
  }
  Tasks::take(&tasks);
  for (std::thread& other : others) other.join();
}

}  // namespace

Threads::Threads(int most, double work) {
#if defined(__SANITIZE_THREAD__)
  most = std::max(most, 4);  // races of the small calls of tests are to be seen, too
  constexpr double fair_part = 1;
#else
  constexpr double fair_part = 1 << 22;  // takes longer than starting a thread and waiting for it
#endif
  count_ = static_cast<int>(std::clamp(work / fair_part, 1.0, static_cast<double>(std::max(most, 1))));
}

void Threads::run(int64_t count, const Task& task) const {
  static const OpenMPParallel openmp_parallel = find_openmp();
  const int threads = static_cast<int>(std::min<int64_t>(count, count_));
  Tasks tasks(count, task);
  if (threads <= 1) {
    Tasks::take(&tasks);
  } else if (openmp_parallel != nullptr && !forked && !of_its_own_) {
    openmp_was_used = true;
    openmp_parallel(Tasks::take, &tasks, static_cast<unsigned>(threads), 0);
  } else {
    run_on_new_threads(threads, tasks);
  }
  tasks.rethrow();
}

bool lost_openmp_threads() { return openmp_was_lost; }

}  // namespace plr_kernels
