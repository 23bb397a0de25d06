// A loop shared between the threads of a pool.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>

namespace qpsnn {

// Runs tasks at some later time, on any thread. `threads` counts the caller.
struct Pool {
  int threads;
  std::function<void(std::function<void()>)> schedule;
};

// work(item, worker) for items 0 to n - 1; workers are numbered below pool.threads and no two run as the same at once.
// The caller works as well and waits only for those that have begun, so that a pool that is busy delays nothing.
// The first exception of any thread leaves the items that have not begun undone, and is thrown to the caller.
template <class Work>
void parallel_for(const Pool& pool, int64_t n, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable ended;
    int running = 0;
    bool closed = false;
    std::exception_ptr failure;

    void fail(int64_t items) {
      next = items;
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  auto shared = std::make_shared<Shared>();
  auto take = [n, &work](Shared& from, int worker) {
    try {
      for (int64_t item; (item = from.next.fetch_add(1)) < n;) work(item, worker);
    } catch (...) {
      from.fail(n);
    }
  };
  try {
    for (int worker = 1; worker < pool.threads && worker < n; ++worker) {
      pool.schedule([shared, take, worker] {
        {
          std::lock_guard<std::mutex> lock(shared->mutex);
          if (shared->closed) return;  // `work` may be gone
          ++shared->running;
        }
        take(*shared, worker);
        std::lock_guard<std::mutex> lock(shared->mutex);
        if (--shared->running == 0) shared->ended.notify_all();
      });
    }
  } catch (...) {
    shared->fail(n);
  }
  take(*shared, 0);
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->closed = true;
  shared->ended.wait(lock, [&] { return shared->running == 0; });
  if (shared->failure) std::rethrow_exception(shared->failure);
}

}  // namespace qpsnn
