// The handlers of sums and their gradient by the maps: maps b h w i, kernels h w i o, cotangents b h w o.
#include "correlate.h"
#include "handlers.h"

namespace qpsnn {

static void Sums(const Call& call) {
  const Floats maps = call.operand(0), kernel = call.operand(1), sums = call.result(0);
  const Conv conv = conv_of(call, maps, sums);
  conv_sums(call.pool(), conv, maps.typed_data(), kernel.typed_data(), sums.typed_data());
}

static void InputGrad(const Call& call) {
  const Floats cotangent = call.operand(0), kernel = call.operand(1), grad = call.result(0);
  const Conv conv = conv_of(call, grad, cotangent);
  conv_input_grad(call.pool(), conv, cotangent.typed_data(), kernel.typed_data(), grad.typed_data());
}

}  // namespace qpsnn

QPSNN_HANDLER(conv_sums, qpsnn::Sums);
QPSNN_HANDLER(conv_input_grad, qpsnn::InputGrad);
