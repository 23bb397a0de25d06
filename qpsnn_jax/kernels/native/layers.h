// Layers of neurons as handlers get them.
#pragma once

#include <type_traits>

#include "handlers.h"
#include "neurons.h"

namespace qpsnn {

// The options of a layer; `surrogate` counts those in qpsnn_jax/numerics/surrogate.py, `shape` is its width or slope.
struct Cell {
  double shape;
  bool inclusive, soft, detached, learned;
  int64_t surrogate;

  static Cell of(const Call& call) {
    return {call.attribute<double>("shape"),  call.attribute<bool>("inclusive"), call.attribute<bool>("soft"),
            call.attribute<bool>("detached"), call.attribute<bool>("learned"),   call.attribute<int64_t>("surrogate")};
  }
};

// The neurons whose τ and θ are the operands `first` and the next.
inline Neurons neurons_of(const Call& call, size_t first, int64_t batch, int64_t steps, int64_t size, int64_t channels) {
  const Cell cell = Cell::of(call);
  const float *tau = call.operand(first).typed_data(), *threshold = call.operand(first + 1).typed_data();
  return {batch, steps, size, channels, tau, threshold, cell.inclusive, cell.soft};
}

// A scalar stands for an array that is not there.
inline const float* data_of(const Floats& array) { return array.dimensions().size() ? array.typed_data() : nullptr; }

// Those of x, factor, offset, residual and initial, the operands from `first` on; τ and θ follow.
inline Currents currents_of(const Call& call, size_t first) {
  const auto operand = [&](size_t i) { return call.operand(first + i); };
  return {operand(0).typed_data(), operand(1).typed_data(), operand(2).typed_data(), data_of(operand(3)),
          data_of(operand(4))};
}

inline Neurons neurons_of(const Call& call, size_t first) {
  const Floats x = call.operand(first);
  const auto shape = x.dimensions();
  const int64_t rows = shape[0] * shape[1], size = rows ? static_cast<int64_t>(x.element_count()) / rows : 0;
  return neurons_of(call, first + 5, shape[0], shape[1], size, shape.back());
}

// `run` with std::true_type if there is a residual.
template <class Run>
void with_residual(const Currents& currents, const Run& run) {
  if (currents.residual)
    run(std::true_type());
  else
    run(std::false_type());
}

}  // namespace qpsnn
