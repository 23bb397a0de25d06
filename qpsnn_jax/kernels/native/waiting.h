// Threads of a pool that stay awake for a moment after a short task: the next loop is often near, and to wake a thread takes
// longer than a small one.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

#include "parallel.h"

namespace qpsnn {

class WaitingThreads {
 public:
  using Task = std::function<void()>;

  static WaitingThreads& all() {
    static WaitingThreads* threads = new WaitingThreads();  // threads may outlive other static objects
    return *threads;
  }

  // Gives a task to a thread that waits, if there is one; returns whether.
  bool give(Task& task) {
    if (free_.load() <= 0) return false;
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.load() <= 0) return false;
    tasks_.push_back(std::move(task));
    --free_, ++given_;
    return true;
  }

  // Runs a task, then those that are given while it waits for them.
  void run(Task task) {
    while (task) {
      const auto begun = Clock::now();
      task();
      task = nullptr;
      const auto ended = Clock::now();
      if (ended - begun < kShort) task = wait(ended + kWait);
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kShort{1000}, kWait{60};

  Task wait(Clock::time_point until) {
    ++free_;
    while (true) {
      for (int k = 0; k < 16 && given_.load() == 0; ++k) pause();
      const bool late = Clock::now() >= until;
      if (!late && given_.load() == 0) continue;
      std::lock_guard<std::mutex> lock(mutex_);
      if (!tasks_.empty()) {
        Task task = std::move(tasks_.front());
        tasks_.pop_front();
        --given_;
        return task;
      }
      if (late) {
        --free_;
        return nullptr;
      }
    }
  }

  // Threads that wait and have no task, and tasks that no thread has taken yet.
  std::atomic<int> free_{0}, given_{0};
  std::mutex mutex_;
  std::deque<Task> tasks_;
};

// The same pool, whose threads wait after short tasks.
inline Pool with_waiting(Pool pool) {
  return {pool.threads, [schedule = std::move(pool.schedule)](std::function<void()> task) {
            if (WaitingThreads::all().give(task)) return;
            schedule([task = std::move(task)] { WaitingThreads::all().run(task); });
          }};
}

}  // namespace qpsnn
