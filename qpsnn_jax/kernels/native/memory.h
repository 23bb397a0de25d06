// Working memory of kernels, at the start of lines of the cache. Threads keep blocks of it for the next call, since new pages
// take longer to get than most are worked on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace qpsnn {

// The blocks that a thread keeps, by size: a few of each power of two from 32 kB to 1 MB.
class KeptMemory {
 public:
  static KeptMemory& of_this_thread() {
    static thread_local KeptMemory mine;
    return mine;
  }

  ~KeptMemory() {
    for (Kept& kept : kept_)
      while (kept.count) release(kept.blocks[--kept.count]);
  }

  void* take(size_t size) {
    const int power = power_of(size);
    if (power < 0) return fresh(size);
    Kept& kept = kept_[power];
    return kept.count ? kept.blocks[--kept.count] : fresh(kLeast << power);
  }

  void give_back(void* block, size_t size) {
    const int power = power_of(size);
    if (power < 0 || kept_[power].count == kept_[power].blocks.size()) return release(block);
    kept_[power].blocks[kept_[power].count++] = block;
  }

 private:
  static constexpr size_t kLeast = 32 << 10;
  static constexpr int kPowers = 6;
  struct Kept {
    std::array<void*, 4> blocks;
    size_t count = 0;
  };

  // The number of the smallest power that holds `size`, -1 for sizes that are not kept, as all where their use is watched.
  static int power_of(size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    return -1;
#endif
    if (size <= kLeast / 2) return -1;
    for (int power = 0; power < kPowers; ++power)
      if (size <= kLeast << power) return power;
    return -1;
  }

  static void* fresh(size_t size) { return ::operator new(size, kLine); }
  static void release(void* block) { ::operator delete(block, kLine); }

  static constexpr std::align_val_t kLine{64};
  std::array<Kept, kPowers> kept_;
};

template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(KeptMemory::of_this_thread().take(n * sizeof(T))); }
  void deallocate(T* x, size_t n) { KeptMemory::of_this_thread().give_back(x, n * sizeof(T)); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
template <class T>
using AlignedVector = std::vector<T, Aligned<T>>;
using AlignedFloats = AlignedVector<float>;

// Numbers with no values yet.
template <class T>
class Unset {
 public:
  Unset() = default;
  explicit Unset(int64_t count) : count_(count), data_(Aligned<T>().allocate(count)) {}
  Unset(Unset&& other) noexcept { *this = std::move(other); }
  Unset& operator=(Unset&& other) noexcept {
    std::swap(count_, other.count_), std::swap(data_, other.data_);
    return *this;
  }
  ~Unset() {
    if (data_) Aligned<T>().deallocate(data_, count_);
  }
  bool empty() const { return count_ == 0; }
  T* data() const { return data_; }

 private:
  int64_t count_ = 0;
  T* data_ = nullptr;
};

// Numbers that are filled in when they are first used, by whichever thread.
class LazyFloats {
 public:
  using Fill = std::function<void(AlignedFloats&)>;
  LazyFloats() = default;
  explicit LazyFloats(Fill fill) : state_(std::make_shared<State>()) { state_->fill = std::move(fill); }
  const float* data() const {
    std::call_once(state_->once, [&] { state_->fill(state_->floats); });
    return state_->floats.data();
  }

 private:
  struct State {
    std::once_flag once;
    Fill fill;
    AlignedFloats floats;
  };
  std::shared_ptr<State> state_;
};

}  // namespace qpsnn
