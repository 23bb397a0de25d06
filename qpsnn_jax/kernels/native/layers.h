// Layers of neurons as handlers get them.
#pragma once

#include <type_traits>

#include "handlers.h"
#include "neurons.h"

namespace qpsnn {

// The options of a layer; `surrogate` counts those in qpsnn_jax/numerics/surrogate.py, `shape` is its width or slope.
struct Cell {
  double tau, threshold, shape;
  bool inclusive, soft, detached;
  int64_t surrogate;

  static Cell of(const Call& call) {
    return {call.attribute<double>("tau"),   call.attribute<double>("threshold"), call.attribute<double>("shape"),
            call.attribute<bool>("inclusive"), call.attribute<bool>("soft"),      call.attribute<bool>("detached"),
            call.attribute<int64_t>("surrogate")};
  }

  Neurons neurons(const Floats& array) const {
    const auto shape = array.dimensions();
    const int64_t rows = shape[0] * shape[1], size = rows ? static_cast<int64_t>(array.element_count()) / rows : 0;
    return neurons(shape[0], shape[1], size, shape.back());
  }
  Neurons neurons(int64_t batch, int64_t steps, int64_t size, int64_t channels) const {
    return {batch, steps, size, channels, static_cast<float>(tau), static_cast<float>(threshold), inclusive, soft};
  }
};

// A scalar stands for an array that is not there.
inline const float* data_of(const Floats& array) { return array.dimensions().size() ? array.typed_data() : nullptr; }

// Those of x, factor, offset, residual and initial, the operands from `first` on.
inline Currents currents_of(const Call& call, size_t first) {
  const auto operand = [&](size_t i) { return call.operand(first + i); };
  return {operand(0).typed_data(), operand(1).typed_data(), operand(2).typed_data(), data_of(operand(3)),
          data_of(operand(4))};
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
