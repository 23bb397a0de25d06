// What the handlers share: XLA's interface, its pool of threads as ours, and our exceptions as its errors.
#pragma once

#include <algorithm>
#include <exception>
#include <new>
#include <string>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace qpsnn {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using FloatResult = ffi::ResultBuffer<ffi::F32>;
using Integers = ffi::Span<const int64_t>;

inline Pool pool_of(ffi::ThreadPool& threads) {
  const int count = static_cast<int>(std::max<int64_t>(1, threads.num_threads()));
  return {count, [&threads](std::function<void()> task) { threads.Schedule(std::move(task)); }};
}

// What `run` throws would end the process.
template <class Run>
ffi::Error guarded(const Run& run) {
  try {
    run();
  } catch (const std::bad_alloc&) {
    return {ffi::ErrorCode::kResourceExhausted, "out of memory in a native kernel of qpsnn_jax"};
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("a native kernel of qpsnn_jax failed: ") + error.what());
  }
  return ffi::Error::Success();
}

}  // namespace qpsnn
