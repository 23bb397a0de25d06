// The handlers of neurons. Arrays are b t …; the attributes of all three are the fields of `Cell`.
#include "neurons.h"

#include "handlers.h"

namespace qpsnn {

// The options of a layer; `surrogate` counts those in qpsnn_jax/numerics/surrogate.py, `shape` is its width or slope.
struct Cell {
  double tau, threshold, shape;
  bool inclusive, soft, detached;
  int64_t surrogate;

  static Cell of(const ffi::Dictionary& attributes) {
    const auto number = [&](const char* name) { return attributes.get<double>(name).value(); };
    const auto flag = [&](const char* name) { return attributes.get<bool>(name).value(); };
    return {number("tau"), number("threshold"), number("shape"), flag("inclusive"), flag("soft"), flag("detached"),
            attributes.get<int64_t>("surrogate").value()};
  }

  Neurons neurons(const Floats& array) const {
    const auto shape = array.dimensions();
    const int64_t rows = shape[0] * shape[1], size = rows ? static_cast<int64_t>(array.element_count()) / rows : 0;
    return {shape[0], shape[1], size, static_cast<float>(tau), static_cast<float>(threshold), inclusive, soft};
  }
};

template <bool Membranes>
static ffi::Error LIF(ffi::ThreadPool threads, Floats currents, Floats initial, FloatResult result,
                      ffi::Dictionary cell) {
  const bool rest = initial.dimensions().size() == 0;
  lif<Membranes>(pool_of(threads), Cell::of(cell).neurons(currents), currents.typed_data(),
                 rest ? nullptr : initial.typed_data(), result->typed_data());
  return ffi::Error::Success();
}

static ffi::Error LIFGrad(ffi::ThreadPool threads, Floats membranes, Floats cotangent, FloatResult result,
                          ffi::Dictionary attributes) {
  const Cell cell = Cell::of(attributes);
  const float shape = static_cast<float>(cell.shape);
  const auto run = [&](auto slope) {
    lif_grad(pool_of(threads), cell.neurons(membranes), slope, cell.detached, membranes.typed_data(),
             cotangent.typed_data(), result->typed_data());
    return ffi::Error::Success();
  };
  switch (cell.surrogate) {
    case 0: return run(Triangular{shape});
    case 1: return run(Rectangular{shape});
    case 2: return run(Sigmoid{shape});
    case 3: return run(Arctan{shape});
  }
  return ffi::Error::InvalidArgument("the surrogate is unknown");
}

}  // namespace qpsnn

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    lif_spikes, qpsnn::LIF<false>,
    qpsnn::ffi::Ffi::Bind()
        .Ctx<qpsnn::ffi::ThreadPool>()
        .Arg<qpsnn::Floats>()
        .Arg<qpsnn::Floats>()
        .Ret<qpsnn::Floats>()
        .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    lif_membranes, qpsnn::LIF<true>,
    qpsnn::ffi::Ffi::Bind()
        .Ctx<qpsnn::ffi::ThreadPool>()
        .Arg<qpsnn::Floats>()
        .Arg<qpsnn::Floats>()
        .Ret<qpsnn::Floats>()
        .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(lif_grad, qpsnn::LIFGrad,
                              qpsnn::ffi::Ffi::Bind()
                                  .Ctx<qpsnn::ffi::ThreadPool>()
                                  .Arg<qpsnn::Floats>()
                                  .Arg<qpsnn::Floats>()
                                  .Ret<qpsnn::Floats>()
                                  .Attrs());
