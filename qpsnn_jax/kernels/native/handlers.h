// What the handlers share: XLA's interface, its pool of threads as ours, and our exceptions as its errors.
#pragma once

#include <algorithm>
#include <exception>
#include <new>
#include <string>
#include <utility>

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

// A handler of what `run` computes. Its exceptions, which would end the process, become errors of XLA.
template <auto Run, class Signature = decltype(Run)>
struct Guarded;

template <auto Run, class... Operands>
struct Guarded<Run, void (*)(Operands...)> {
  static ffi::Error call(Operands... operands) {
    try {
      Run(std::move(operands)...);
    } catch (const std::bad_alloc&) {
      return {ffi::ErrorCode::kResourceExhausted, "out of memory in a native kernel of qpsnn_jax"};
    } catch (const std::exception& error) {
      return ffi::Error::Internal(std::string("a native kernel of qpsnn_jax failed: ") + error.what());
    } catch (...) {
      return ffi::Error::Internal("a native kernel of qpsnn_jax failed");
    }
    return ffi::Error::Success();
  }
};

}  // namespace qpsnn

// The only way to define a handler here.
#define QPSNN_HANDLER(name, run, binding) XLA_FFI_DEFINE_HANDLER_SYMBOL(name, qpsnn::Guarded<run>::call, binding)
