// The handlers of convolutions.
#include "handlers.h"
#include "kernel_grad.h"

namespace qpsnn {

static ffi::Error ConvKernelGrad(ffi::ThreadPool threads, Floats maps, Floats cotangent, FloatResult result,
                                 Integers kernel, Integers strides, Integers padding) {
  const auto x = maps.dimensions(), y = cotangent.dimensions();
  const Conv conv{x[0], x[1], x[2], x[3], y[1], y[2], y[3], kernel[0], kernel[1], strides[0], strides[1], padding[0], padding[1]};
  kernel_grad(pool_of(threads), conv, maps.typed_data(), cotangent.typed_data(), result->typed_data());
  return ffi::Error::Success();
}

}  // namespace qpsnn

XLA_FFI_DEFINE_HANDLER_SYMBOL(conv_kernel_grad, qpsnn::ConvKernelGrad,
                              qpsnn::ffi::Ffi::Bind()
                                  .Ctx<qpsnn::ffi::ThreadPool>()
                                  .Arg<qpsnn::Floats>()
                                  .Arg<qpsnn::Floats>()
                                  .Ret<qpsnn::Floats>()
                                  .Attr<qpsnn::Integers>("kernel")
                                  .Attr<qpsnn::Integers>("strides")
                                  .Attr<qpsnn::Integers>("padding"));
