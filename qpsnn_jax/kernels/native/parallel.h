// A loop shared between the threads of a pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace qpsnn {

// Runs tasks at some later time, on any thread. `threads` counts the caller.
struct Pool {
  int threads;
  std::function<void(std::function<void()>)> schedule;
};

// Tells the processor that this thread only waits.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The threads that share a loop.
class Crew {
 public:
  // Counts a thread in, unless closed; one that is counted must leave.
  bool enter() {
    int seen = state_.load();
    do {
      if (seen & kClosed) return false;
    } while (!state_.compare_exchange_weak(seen, seen + 1));
    return true;
  }

  void leave() {
    if (state_.fetch_sub(1) != kClosed + 1) return;
    std::lock_guard<std::mutex> lock(mutex_);
    ended_.notify_all();
  }

  // No thread begins from now on; waits for those that have.
  void close() {
    if (state_.fetch_or(kClosed) == 0) return;
    // To sleep and be woken takes longer than most items, so it first waits awake.
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    while (state_.load() != kClosed && std::chrono::steady_clock::now() < until) pause();
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [&] { return state_.load() == kClosed; });
  }

 private:
  static constexpr int kClosed = 1 << 30;
  std::atomic<int> state_{0};  // the number of threads inside, and kClosed
  std::mutex mutex_;
  std::condition_variable ended_;
};

// A number of this thread, from 0 on in the order in which threads ask.
inline size_t thread_number() {
  static std::atomic<size_t> threads{0};
  static thread_local const size_t mine = threads.fetch_add(1);
  return mine;
}

// work(item, worker) for items 0 to n - 1; workers are numbered below pool.threads and no two run as the same at once.
// The caller works as well and waits only for those that have begun, so that a pool that is busy delays nothing.
// The items are in parts, of which each thread begins with one by its number, then helps with the others: so a thread
// meets the same images in one loop after another, and finds them in its cache.
// The first exception of any thread leaves the items that have not begun undone, and is thrown to the caller.
inline void parallel_for(const Pool& pool, int64_t n, const std::function<void(int64_t, int)>& work) {
  struct alignas(64) Items {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Shared {
    std::vector<Items> parts;
    Crew crew;
    std::mutex mutex;
    std::exception_ptr failure;

    Shared(int64_t items, int64_t number) : parts(number) {
      for (int64_t i = 0; i < number; ++i) parts[i].next = items * i / number, parts[i].end = items * (i + 1) / number;
    }

    void fail() {
      for (Items& part : parts) part.next = part.end;
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  auto shared = std::make_shared<Shared>(n, std::clamp<int64_t>(n, 1, pool.threads));
  auto take = [&work](Shared& from, int worker) {
    try {
      const size_t first = thread_number() % from.parts.size();
      for (size_t i = 0; i < from.parts.size(); ++i) {
        Items& part = from.parts[(first + i) % from.parts.size()];
        while (part.next.load(std::memory_order_relaxed) < part.end) {
          const int64_t item = part.next.fetch_add(1);
          if (item < part.end) work(item, worker);
        }
      }
    } catch (...) {
      from.fail();
    }
  };
  try {
    for (int worker = 1; worker < pool.threads && worker < n; ++worker) {
      pool.schedule([shared, take, worker] {
        if (!shared->crew.enter()) return;  // `work` may be gone
        take(*shared, worker);
        shared->crew.leave();
      });
    }
  } catch (...) {
    shared->fail();
  }
  take(*shared, 0);
  shared->crew.close();
  if (shared->failure) std::rethrow_exception(shared->failure);
}

}  // namespace qpsnn
