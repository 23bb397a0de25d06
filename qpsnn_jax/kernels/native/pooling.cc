// The handler of max-pools.
#include "pooling.h"

#include "handlers.h"

namespace qpsnn {

static void MaxPoolGrad(const Call& call) {
  const Floats maps = call.operand(0), cotangent = call.operand(1);
  const auto x = maps.dimensions(), y = cotangent.dimensions();
  const auto window = call.attribute<Integers>("window");
  const Tiles tiles{x[0], x[1], x[2], x[3], y[1], y[2], window[0], window[1]};
  max_pool_grad(call.pool(), tiles, maps.typed_data(), cotangent.typed_data(), call.result(0).typed_data());
}

// Packed spikes of maps `shape` b·t h w c.
static void MaxPoolSpikes(const Call& call) {
  const auto shape = call.attribute<Integers>("shape"), window = call.attribute<Integers>("window");
  const Tiles tiles{shape[0], shape[1], shape[2], shape[3], shape[1] / window[0], shape[2] / window[1], window[0], window[1]};
  const PackedSpikes spikes = call.packed_operand(0, tiles.images, tiles.h * tiles.w, tiles.channels).value();
  const PackedSpikes result = call.packed_result(0, tiles.images, tiles.oh * tiles.ow, tiles.channels);
  max_pool(call.pool(), tiles, spikes, result);
}

}  // namespace qpsnn

QPSNN_HANDLER(max_pool_spikes, qpsnn::MaxPoolSpikes);
QPSNN_HANDLER(max_pool_grad, qpsnn::MaxPoolGrad);
