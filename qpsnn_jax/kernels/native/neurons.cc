// The handlers of neurons. Arrays are b t … c; the attributes of all three are the fields of `Cell`.
#include <stdexcept>

#include "layers.h"

namespace qpsnn {

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
