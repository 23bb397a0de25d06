// The handler of gradients by the kernel: maps b h w i, cotangents b h w o, kernels h w i o.
#include "kernel_grad.h"

#include "handlers.h"

namespace qpsnn {

static void KernelGrad(const Call& call) {
  const Floats maps = call.operand(0), cotangent = call.operand(1), grad = call.result(0);
  const Conv conv = conv_of(call, maps, cotangent);
  kernel_grad(call.pool(), conv, maps.typed_data(), cotangent.typed_data(), grad.typed_data());
}

}  // namespace qpsnn

QPSNN_HANDLER(conv_kernel_grad, qpsnn::KernelGrad);
