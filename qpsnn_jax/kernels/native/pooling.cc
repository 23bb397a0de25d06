// The handler of max-pools.
#include "pooling.h"

#include "handlers.h"

namespace qpsnn {

static void MaxPoolGrad(ffi::ThreadPool threads, Floats maps, Floats cotangent, FloatResult result,
                        Integers window) {
  const auto x = maps.dimensions(), y = cotangent.dimensions();
  const Tiles tiles{x[0], x[1], x[2], x[3], y[1], y[2], window[0], window[1]};
  max_pool_grad(pool_of(threads), tiles, maps.typed_data(), cotangent.typed_data(), result->typed_data());
}

}  // namespace qpsnn

QPSNN_HANDLER(max_pool_grad, qpsnn::MaxPoolGrad,
              qpsnn::ffi::Ffi::Bind()
                  .Ctx<qpsnn::ffi::ThreadPool>()
                  .Arg<qpsnn::Floats>()
                  .Arg<qpsnn::Floats>()
                  .Ret<qpsnn::Floats>()
                  .Attr<qpsnn::Integers>("window"));
