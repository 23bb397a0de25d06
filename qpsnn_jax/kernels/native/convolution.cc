// The handlers of convolutions: maps b h w i, kernels h w i o, cotangents b h w o.
#include "correlate.h"
#include "handlers.h"
#include "kernel_grad.h"

namespace qpsnn {

static Conv conv_of(const Floats& maps, const Floats& sums, Integers kernel, Integers strides, Integers padding) {
  const auto x = maps.dimensions(), y = sums.dimensions();
  return {x[0], x[1], x[2], x[3], y[1], y[2], y[3], kernel[0], kernel[1], strides[0], strides[1], padding[0], padding[1]};
}

static void Sums(ffi::ThreadPool threads, Floats maps, Floats kernel, FloatResult sums, Integers hw, Integers strides,
                 Integers padding) {
  const Conv conv = conv_of(maps, *sums, hw, strides, padding);
  conv_sums(pool_of(threads), conv, maps.typed_data(), kernel.typed_data(), sums->typed_data());
}

static void InputGrad(ffi::ThreadPool threads, Floats cotangent, Floats kernel, FloatResult grad, Integers hw, Integers,
                      Integers strides, Integers padding) {
  const Conv conv = conv_of(*grad, cotangent, hw, strides, padding);
  conv_input_grad(pool_of(threads), conv, cotangent.typed_data(), kernel.typed_data(), grad->typed_data());
}

static void KernelGrad(ffi::ThreadPool threads, Floats maps, Floats cotangent, FloatResult grad, Integers hw,
                       Integers strides, Integers padding) {
  const Conv conv = conv_of(maps, cotangent, hw, strides, padding);
  kernel_grad(pool_of(threads), conv, maps.typed_data(), cotangent.typed_data(), grad->typed_data());
}

static auto two_to_one() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Attr<Integers>("kernel");
}

}  // namespace qpsnn

QPSNN_HANDLER(conv_sums, qpsnn::Sums,
              qpsnn::two_to_one().Attr<qpsnn::Integers>("strides").Attr<qpsnn::Integers>("padding"));
QPSNN_HANDLER(conv_input_grad, qpsnn::InputGrad,
              qpsnn::two_to_one()
                  .Attr<qpsnn::Integers>("input_hw")
                  .Attr<qpsnn::Integers>("strides")
                  .Attr<qpsnn::Integers>("padding"));
QPSNN_HANDLER(conv_kernel_grad, qpsnn::KernelGrad,
              qpsnn::two_to_one().Attr<qpsnn::Integers>("strides").Attr<qpsnn::Integers>("padding"));
