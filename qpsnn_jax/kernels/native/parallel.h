// A loop shared between the threads of a pool.
#pragma once

#include <atomic>
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

// The threads that share a loop. To sleep and be woken takes longer than most items, so the caller first waits awake.
class Crew {
 public:
  // Whether another thread may begin, which then must leave.
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
    for (int i = 0; i < kPauses && state_.load() != kClosed; ++i) pause();
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [&] { return state_.load() == kClosed; });
  }

 private:
  static constexpr int kClosed = 1 << 30, kPauses = 2000;
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
// The first exception of any thread leaves the items that have not begun undone, and is thrown to the caller.
template <class Work>
void parallel_for(const Pool& pool, int64_t n, const Work& work) {
  struct alignas(64) Part {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct Shared {
    std::vector<Part> parts;
    Crew crew;
    std::mutex mutex;
    std::exception_ptr failure;

    Shared(int64_t items, int64_t threads) : parts(threads) {
      for (int64_t i = 0; i < threads; ++i) parts[i].next = items * i / threads, parts[i].end = items * (i + 1) / threads;
    }

    void fail() {
      for (Part& part : parts) part.next = part.end;
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  auto shared = std::make_shared<Shared>(n, pool.threads);
  auto take = [&work](Shared& from, int worker) {
    try {
      const size_t first = thread_number() % from.parts.size();
      for (size_t i = 0; i < from.parts.size(); ++i) {
        Part& part = from.parts[(first + i) % from.parts.size()];
        for (int64_t item; (item = part.next.fetch_add(1)) < part.end;) work(item, worker);
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
