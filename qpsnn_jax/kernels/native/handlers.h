// What the handlers share: XLA's interface, and its pool of threads as ours.
#pragma once

#include <algorithm>

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

}  // namespace qpsnn
