// The handlers of neurons. Arrays are b t … c; the attributes of all three are the fields of `Cell`.
#include "neurons.h"

#include <stdexcept>

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
    return {shape[0], shape[1], size, shape.back(), static_cast<float>(tau), static_cast<float>(threshold), inclusive,
            soft};
  }
};

// A scalar stands for an array that is not there.
static const float* data_of(const Floats& array) { return array.dimensions().size() ? array.typed_data() : nullptr; }

static Currents currents_of(Floats x, Floats factor, Floats offset, Floats residual, Floats initial) {
  return {x.typed_data(), factor.typed_data(), offset.typed_data(), data_of(residual), data_of(initial)};
}

// `run` with std::true_type if there is a residual.
template <class Run>
static void with_residual(const Currents& currents, const Run& run) {
  if (currents.residual)
    run(std::true_type());
  else
    run(std::false_type());
}

template <bool Membranes>
static void LIF(ffi::ThreadPool threads, Floats x, Floats factor, Floats offset, Floats residual, Floats initial,
                FloatResult result, ffi::Dictionary cell) {
  const Currents currents = currents_of(x, factor, offset, residual, initial);
  with_residual(currents, [&](auto added) {
    lif<Membranes, added>(pool_of(threads), Cell::of(cell).neurons(x), currents, result->typed_data());
  });
}

static void LIFGrad(ffi::ThreadPool threads, Floats cotangent, Floats x, Floats factor, Floats offset,
                    Floats residual, Floats initial, FloatResult by_currents, FloatResult by_factor,
                    FloatResult by_offset, ffi::Dictionary attributes) {
  const Cell cell = Cell::of(attributes);
  const Currents currents = currents_of(x, factor, offset, residual, initial);
  const float shape = static_cast<float>(cell.shape);
  const auto run = [&](auto slope) {
    with_residual(currents, [&](auto added) {
      lif_grad<added>(pool_of(threads), cell.neurons(x), slope, cell.detached, currents, cotangent.typed_data(),
                      by_currents->typed_data(), by_factor->typed_data(), by_offset->typed_data());
    });
  };
  switch (cell.surrogate) {
    case 0: return run(Triangular{shape});
    case 1: return run(Rectangular{shape});
    case 2: return run(Sigmoid{shape});
    case 3: return run(Arctan{shape});
  }
  throw std::invalid_argument("the surrogate is unknown");
}

// x, factor, offset, residual, initial.
template <class Bind>
static auto with_currents(Bind&& bind) {
  auto two = std::move(bind).template Arg<Floats>().template Arg<Floats>();
  return std::move(two).template Arg<Floats>().template Arg<Floats>().template Arg<Floats>();
}

static auto forward() {
  return with_currents(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()).Ret<Floats>().Attrs();
}

static auto backward() {
  auto operands = with_currents(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>());
  return std::move(operands).Ret<Floats>().Ret<Floats>().Ret<Floats>().Attrs();
}

}  // namespace qpsnn

QPSNN_HANDLER(lif_spikes, qpsnn::LIF<false>, qpsnn::forward());
QPSNN_HANDLER(lif_membranes, qpsnn::LIF<true>, qpsnn::forward());
QPSNN_HANDLER(lif_grad, qpsnn::LIFGrad, qpsnn::backward());
