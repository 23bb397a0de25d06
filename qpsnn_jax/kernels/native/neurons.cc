// The handlers of neurons. Arrays are b t … c; the attributes of all three are the fields of `Cell`.
#include "neurons.h"

#include <stdexcept>

#include "handlers.h"

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
    return {shape[0], shape[1], size, shape.back(), static_cast<float>(tau), static_cast<float>(threshold), inclusive,
            soft};
  }
};

// A scalar stands for an array that is not there.
static const float* data_of(const Floats& array) { return array.dimensions().size() ? array.typed_data() : nullptr; }

// Those of x, factor, offset, residual and initial, the operands from `first` on.
static Currents currents_of(const Call& call, size_t first) {
  const auto operand = [&](size_t i) { return call.operand(first + i); };
  return {operand(0).typed_data(), operand(1).typed_data(), operand(2).typed_data(), data_of(operand(3)),
          data_of(operand(4))};
}

// `run` with std::true_type if there is a residual.
template <class Run>
static void with_residual(const Currents& currents, const Run& run) {
  if (currents.residual)
    run(std::true_type());
  else
    run(std::false_type());
}

template <bool Membranes>
static void LIF(const Call& call) {
  const Currents currents = currents_of(call, 0);
  with_residual(currents, [&](auto added) {
    lif<Membranes, added>(call.pool(), Cell::of(call).neurons(call.operand(0)), currents, call.result(0).typed_data());
  });
}

static void LIFGrad(const Call& call) {
  const Cell cell = Cell::of(call);
  const Currents currents = currents_of(call, 1);
  const float shape = static_cast<float>(cell.shape);
  const auto run = [&](auto slope) {
    with_residual(currents, [&](auto added) {
      lif_grad<added>(call.pool(), cell.neurons(call.operand(1)), slope, cell.detached, currents,
                      call.operand(0).typed_data(), call.result(0).typed_data(), call.result(1).typed_data(),
                      call.result(2).typed_data());
    });
  };
  switch (cell.surrogate) {
    case 0: return run(Triangular{shape});
    case 1: return run(Rectangular{shape});
    case 2: return run(Sigmoid{shape});
    case 3: return run(Arctan{shape});
  }
  throw std::invalid_argument("the surrogate is unknown");
}

}  // namespace qpsnn

QPSNN_HANDLER(lif_spikes, qpsnn::LIF<false>);
QPSNN_HANDLER(lif_membranes, qpsnn::LIF<true>);
QPSNN_HANDLER(lif_grad, qpsnn::LIFGrad);
