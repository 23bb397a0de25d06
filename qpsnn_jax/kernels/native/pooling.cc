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

}  // namespace qpsnn

QPSNN_HANDLER(max_pool_grad, qpsnn::MaxPoolGrad);
