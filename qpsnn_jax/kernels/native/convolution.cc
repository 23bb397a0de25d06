// The handlers of sums, their gradient by the maps, and neurons of sums: maps b h w i, kernels h w i o, cotangents b h w o.
#include "conv_neurons.h"
#include "layers.h"

namespace qpsnn {

static void Sums(const Call& call) {
  const Floats maps = call.operand(0), kernel = call.operand(1), sums = call.result(0);
  const Conv conv = conv_of(call, maps, sums);
  conv_sums(call.pool(), conv, {maps.typed_data()}, kernel.typed_data(), sums.typed_data());
}

static void InputGrad(const Call& call) {
  const Floats cotangent = call.operand(0), kernel = call.operand(1), grad = call.result(0);
  const Conv conv = conv_of(call, grad, cotangent);
  conv_input_grad(call.pool(), conv, cotangent.typed_data(), kernel.typed_data(), grad.typed_data());
}

// Maps b·t h w i of all steps, or b h w i that are the same at every step; these and the residual may be packed. The results
// are packed spikes b t h w o, and potentials b h w o.
static void ConvSpikes(const Call& call) {
  const Floats kernel = call.operand(1), last = call.result(1);
  const auto hw = call.attribute<Integers>("input_hw"), taps = call.attribute<Integers>("kernel"),
             strides = call.attribute<Integers>("strides"), padding = call.attribute<Integers>("padding");
  const auto shape = last.dimensions();
  const int64_t batch = shape[0], steps = call.attribute<int64_t>("steps"), images = batch * steps;
  const int64_t inputs = kernel.dimensions()[2], outputs = shape[3], pixels = shape[1] * shape[2];
  const int64_t given = call.attribute<bool>("repeated") ? batch : images;
  const Conv conv{given,   hw[0],   hw[1],      inputs,     shape[1],   shape[2],  outputs,
                  taps[0], taps[1], strides[0], strides[1], padding[0], padding[1]};
  const auto maps = call.packed_operand(0, given, hw[0] * hw[1], inputs);
  const auto residual = call.packed_operand(4, images, pixels, outputs);
  const PackedSpikes spikes = call.packed_result(0, images, pixels, outputs);
  const Neurons n = neurons_of(call, 6, batch, steps, pixels * outputs, outputs);
  const Currents currents{nullptr, call.operand(2).typed_data(), call.operand(3).typed_data(),
                          residual ? nullptr : data_of(call.operand(4)), data_of(call.operand(5))};
  conv_lif(call.pool(), conv, n, maps ? Maps{nullptr, &*maps} : Maps{call.operand(0).typed_data()}, kernel.typed_data(), currents,
           residual ? &*residual : nullptr, spikes, last.typed_data());
}

// Packed spikes as numbers, … h w c.
static void UnpackSpikes(const Call& call) {
  const Floats result = call.result(0);
  const auto shape = result.dimensions().last(3);
  const int64_t pixels = shape[0] * shape[1], size = pixels * shape[2];
  const int64_t images = size ? static_cast<int64_t>(result.element_count()) / size : 0;
  if (images == 0) return;
  const PackedSpikes spikes = call.packed_operand(0, images, pixels, shape[2]).value();
  float* to = result.typed_data();
  parallel_for(call.pool(), images, [&](int64_t image, int) { spikes.read(image, 0, pixels, to + image * size); });
}

}  // namespace qpsnn

QPSNN_HANDLER(conv_sums, qpsnn::Sums);
QPSNN_HANDLER(conv_input_grad, qpsnn::InputGrad);
QPSNN_HANDLER(conv_lif_spikes, qpsnn::ConvSpikes);
QPSNN_HANDLER(unpack_spikes, qpsnn::UnpackSpikes);
