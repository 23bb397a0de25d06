// The handlers of neurons. Arrays are b t … c; the attributes of all three are the fields of `Cell`.
#include <stdexcept>

#include "layers.h"

namespace qpsnn {

template <bool Membranes>
static void LIF(const Call& call) {
  const Currents currents = currents_of(call, 0);
  with_residual(currents, [&](auto added) {
    lif<Membranes, added>(call.pool(), neurons_of(call, 0), currents, call.result(0).typed_data());
  });
}

static void LIFGrad(const Call& call) {
  const Cell cell = Cell::of(call);
  const Currents currents = currents_of(call, 1);
  const float shape = static_cast<float>(cell.shape);
  const auto result = [&](size_t i) { return call.result(i).typed_data(); };
  const ByChannel by{result(1), result(2), cell.learned ? result(3) : nullptr, cell.learned ? result(4) : nullptr};
  const auto run = [&](auto slope) {
    with_residual(currents, [&](auto added) {
      lif_grad<added>(call.pool(), neurons_of(call, 1), slope, cell.detached, currents, call.operand(0).typed_data(), result(0),
                      by);
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
