// What the handlers share: XLA's interface, its pool of threads as ours, and our exceptions as its errors.
#pragma once

#include <algorithm>
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "geometry.h"
#include "packed.h"
#include "parallel.h"
#include "waiting.h"
#include "xla/ffi/api/ffi.h"

namespace qpsnn {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Integers = ffi::Span<const int64_t>;

// What XLA calls a handler with. All handlers take the same, since each list of types costs a second of compilation.
struct Call {
  mutable ffi::ThreadPool threads;
  ffi::RemainingArgs operands;
  ffi::RemainingRets results;
  ffi::Dictionary attributes;

  Pool pool() const {
    const int count = static_cast<int>(std::max<int64_t>(1, threads.num_threads()));
    return with_waiting({count, [this](std::function<void()> task) { threads.Schedule(std::move(task)); }});
  }
  Floats operand(size_t i) const { return found(operands.get<Floats>(i)); }
  Floats result(size_t i) const { return *found(results.get<Floats>(i)); }
  // Packed spikes of so many images, pixels and channels; none where the operand is of numbers.
  std::optional<PackedSpikes> packed_operand(size_t i, int64_t images, int64_t pixels, int64_t channels) const {
    return packed(found(operands.get<ffi::AnyBuffer>(i)), images, pixels, channels);
  }
  PackedSpikes packed_result(size_t i, int64_t images, int64_t pixels, int64_t channels) const {
    return packed(*found(results.get<ffi::AnyBuffer>(i)), images, pixels, channels).value();
  }
  template <class T>
  T attribute(const char* name) const {
    return found(attributes.get<T>(name));
  }

 private:
  static std::optional<PackedSpikes> packed(const ffi::AnyBuffer& array, int64_t images, int64_t pixels, int64_t channels) {
    if (array.element_type() != ffi::U8) return std::nullopt;
    if (static_cast<int64_t>(array.element_count()) != PackedSpikes::size(images, pixels, channels))
      throw std::invalid_argument("packed spikes are of another size");
    return PackedSpikes(static_cast<uint8_t*>(array.untyped_data()), images, pixels, channels);
  }
  template <class T>
  static T found(const ffi::ErrorOr<T>& decoded) {
    if (!decoded.has_value()) throw std::invalid_argument(decoded.error().message());
    return decoded.value();
  }
};

// The convolution of a call, by its attributes, between `maps` and `sums`.
inline Conv conv_of(const Call& call, const Floats& maps, const Floats& sums) {
  const auto x = maps.dimensions(), y = sums.dimensions().last(3);
  const auto hw = call.attribute<Integers>("kernel"), strides = call.attribute<Integers>("strides"),
             padding = call.attribute<Integers>("padding");
  return {x[0], x[1], x[2], x[3], y[0], y[1], y[2], hw[0], hw[1], strides[0], strides[1], padding[0], padding[1]};
}

// A handler of what `run` computes. Its exceptions, which would end the process, become errors of XLA.
template <void (*run)(const Call&)>
ffi::Error guarded(ffi::ThreadPool threads, ffi::RemainingArgs operands, ffi::RemainingRets results,
                   ffi::Dictionary attributes) {
  try {
    run(Call{threads, operands, results, attributes});
  } catch (const std::bad_alloc&) {
    return {ffi::ErrorCode::kResourceExhausted, "out of memory in a native kernel of qpsnn_jax"};
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("a native kernel of qpsnn_jax failed: ") + error.what());
  } catch (...) {
    return ffi::Error::Internal("a native kernel of qpsnn_jax failed");
  }
  return ffi::Error::Success();
}

inline auto binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs();
}

}  // namespace qpsnn

// The only way to define a handler here.
#define QPSNN_HANDLER(name, run) XLA_FFI_DEFINE_HANDLER_SYMBOL(name, qpsnn::guarded<run>, qpsnn::binding())
