// The handlers of sums, their gradient by the maps, and neurons of sums: maps b h w i, kernels h w i o, cotangents b h w o.
#include "conv_neurons.h"
#include "layers.h"

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

// Maps b·t h w i of all steps, or b h w i that are the same at every step. The results are spikes b t h w o, and potentials b h w o.
static void ConvSpikes(const Call& call) {
  const Floats maps = call.operand(0), kernel = call.operand(1), spikes = call.result(0);
  Currents currents = currents_of(call, 1);
  currents.x = nullptr;
  with_residual(currents, [&](auto added) {
    conv_lif<added>(call.pool(), conv_of(call, maps, spikes), Cell::of(call).neurons(spikes), maps.typed_data(),
                    kernel.typed_data(), currents, spikes.typed_data(), call.result(1).typed_data());
  });
}

}  // namespace qpsnn

QPSNN_HANDLER(conv_sums, qpsnn::Sums);
QPSNN_HANDLER(conv_input_grad, qpsnn::InputGrad);
QPSNN_HANDLER(conv_lif_spikes, qpsnn::ConvSpikes);
