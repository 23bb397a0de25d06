// Leaky integrate-and-fire neurons over time and their gradient, each in one pass over memory.
//
// A piece of the neurons of an example goes through all steps while its potentials stay in the first levels of the cache.
#pragma once

#include <array>

#include "channels.h"

namespace qpsnn {

// Arrays are `batch` x `steps` x `size`, channels last; tau and threshold are by channel. Neurons fire at the threshold too if it
// is `inclusive`.
struct Neurons {
  int64_t batch, steps, size, channels;
  const float *tau, *threshold;
  bool inclusive, soft;
};

// x * factor + offset + residual, with factor and offset by channel, and the potentials before the first step, b size.
// The last two may be null, for zeros.
struct Currents {
  const float *x, *factor, *offset, *residual, *initial;
};

inline Vector magnitude(Vector x) { return x < 0 ? -x : x; }

// 1 or 0 where the distance to the threshold is past it, or at it with `inclusive`; NaN where it is NaN.
inline Vector fire(Vector distance, bool inclusive) {
  const Whole past = inclusive ? distance >= 0 : distance > 0;
  return distance == distance ? (past ? all(1) : all(0)) : distance;
}

// e to the power of x, -87 < x <= 0, within 2 units in the last place; NaN for NaN.
inline Vector exponential(Vector x) {
  x = x < -87 ? all(-87) : x;
  constexpr float kRound = 12582912;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector shifted = x * 1.44269504f + kRound, power = shifted - kRound;
  const Vector rest = (x - power * 0.693359375f) + power * 2.12194440e-4f;
  Vector series = all(1.9875691500e-4f);
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    series = series * rest + next;
  series = series * rest * rest + rest + 1;
  const Whole scale = ((Whole)shifted << 23) + (127 << 23);
  return series * (Vector)scale;
}

// The surrogates of qpsnn_jax/numerics/surrogate.py.
struct Triangular {
  float width;
  Vector operator()(Vector x) const {
    const Vector left = width - magnitude(x);
    return (left < 0 ? all(0) : left) / (width * width);
  }
};
struct Rectangular {
  float width;
  Vector operator()(Vector x) const { return magnitude(x) < width / 2 ? all(1 / width) : all(0); }
};
struct Sigmoid {
  float slope;
  Vector operator()(Vector x) const {
    const Vector falling = exponential(-magnitude(slope * x)), both = 1 + falling;  // even in x
    return slope * falling / (both * both);
  }
};
struct Arctan {
  float slope;
  Vector operator()(Vector x) const {
    const Vector y = 1.57079632679f * slope * x;
    return slope / 2 / (1 + y * y);
  }
};

// One piece of the neurons of an example. It is copied where it is used, so that compilers know that no store changes it.
struct Piece {
  const float *x, *factor, *offset, *residual, *tau, *threshold;
  bool inclusive, soft;

  // The currents of some neurons, those from i on of the piece, that is at `from` in x and at `place` in the residual.
  template <bool Residual, class Some>
  Vector current(int64_t from, int64_t place, int64_t i, Some some) const {
    const Vector y = some.load(x + from + i) * load(factor + i) + load(offset + i);
    return Residual ? y + some.load(residual + place + i) : y;
  }

  // Updates the potentials that are left of neurons i and on; returns those before the reset, and whether they fire.
  std::pair<Vector, Vector> step(float* left, int64_t i, Vector current) const {
    const Vector charged = load(tau + i) * load(left + i) + current, spike = spikes(charged, i);
    store(left + i, after_reset(charged, spike, i));
    return {charged, spike};
  }

  Vector spikes(Vector charged, int64_t i) const { return fire(charged - load(threshold + i), inclusive); }
  Vector after_reset(Vector charged, Vector spike, int64_t i) const {
    return spike == 1 ? charged - (soft ? load(threshold + i) : charged) : charged;
  }
};

// What the passes share: what is by channel, at every place of a piece.
class Layer {
 public:
  Layer(const Neurons& n, const Currents& from, int64_t length)
      : pieces(n.batch, n.size, n.channels, length), n_(n), from_(from),
        factor_(pieces.repeated(from.factor)), offset_(pieces.repeated(from.offset)), tau_(pieces.repeated(n.tau)),
        threshold_(pieces.repeated(n.threshold)) {}

  Piece piece() const {
    return {from_.x,     factor_.data(),    offset_.data(), from_.residual,
            tau_.data(), threshold_.data(), n_.inclusive,   n_.soft};
  }

  // The potentials of a piece before the first step.
  void start(float* left, int64_t place, int64_t count) const {
    std::fill_n(left, pieces.length, 0.0f);
    if (from_.initial) std::copy_n(from_.initial + place, count, left);
  }

  const Pieces pieces;

 private:
  const Neurons n_;
  const Currents from_;
  const AlignedFloats factor_, offset_, tau_, threshold_;
};

// How many neurons a piece has, so that what it keeps of all steps stays in the cache.
inline int64_t cached_length(int64_t steps) { return std::clamp<int64_t>(16384 / std::max<int64_t>(1, steps), 64, 1024); }

// A place in memory at the first step, and how many numbers later that of the next step is.
struct Steps {
  int64_t first, stride;
  int64_t at(int64_t t) const { return first + t * stride; }
};

// All steps of `count` neurons: their spikes, or membranes before the reset. `left` are their potentials, updated.
template <bool Membranes, bool Residual>
void run_steps(const Piece& piece, int64_t steps, int64_t count, float* left, const Steps& x, const Steps& residual,
               const Steps& result, float* to) {
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t from = x.at(t), added = residual.at(t), place = result.at(t);
    each_vector(count, [=](int64_t i, auto some) {
      const auto [charged, spike] = piece.step(left, i, piece.current<Residual>(from, added, i, some));
      some.store(to + place + i, Membranes ? charged : spike);
    });
  }
}

// Spikes or membranes before the reset.
template <bool Membranes, bool Residual>
void lif(const Pool& pool, const Neurons& n, const Currents& from, float* result) {
  const Layer layer(n, from, 1024);
  std::vector<AlignedFloats> potentials(pool.threads);
  layer.pieces.each(
      pool, [](int) {},
      [&](int64_t example, int64_t start, int64_t count, int worker) {
        potentials[worker].resize(layer.pieces.length);
        float* left = potentials[worker].data();
        layer.start(left, example * n.size + start, count);
        const Steps places{example * n.steps * n.size + start, n.size};
        run_steps<Membranes, Residual>(layer.piece(), n.steps, count, left, places, places, places, result);
      },
      [](int64_t, int) {});
}

// Where the gradients by what is by channel are written; those by tau and threshold may be null, and are not computed then.
struct ByChannel {
  float *factor, *offset, *tau, *threshold;
};

// Gradients for a cotangent of the spikes: by the currents, which may be written over the cotangent, and by channel. `detached`
// omits what flows through resets.
template <bool Residual, class Slope>
void lif_grad(const Pool& pool, const Neurons& n, Slope slope, bool detached, const Currents& from,
              const float* cotangent, float* by_currents, const ByChannel& by) {
  const Layer layer(n, from, cached_length(n.steps));
  const int64_t length = layer.pieces.length;
  const bool learned = by.tau != nullptr, started = from.initial != nullptr;
  ChannelSums sums(layer.pieces, pool, learned ? 4 : 2);
  std::vector<AlignedFloats> scratch(pool.threads);
  layer.pieces.each(
      pool, [&](int worker) { sums.begin(worker); },
      [&](int64_t example, int64_t start, int64_t count, int worker) {
        scratch[worker].resize((n.steps + 2) * length);
        float *left = scratch[worker].data(), *later = left + length;
        layer.start(left, example * n.size + start, count);
        float *factor = sums.places(worker, 0), *offset = sums.places(worker, 1), *to = by_currents;
        float* by_tau = learned ? sums.places(worker, 2) : nullptr;
        float* by_threshold = learned ? sums.places(worker, 3) : nullptr;
        const Piece piece = layer.piece();
        for (int64_t t = 0; t < n.steps; ++t) {
          float* membranes = later + (1 + t) * length;
          const int64_t place = (example * n.steps + t) * n.size + start;
          each_vector(count, [=](int64_t i, auto some) {
            store(membranes + i, piece.step(left, i, piece.current<Residual>(place, place, i, some)).first);
          });
        }
        if (learned) layer.start(left, example * n.size + start, count);
        for (int64_t t = n.steps - 1; t >= 0; --t) {
          const float* membranes = later + (1 + t) * length;
          const int64_t place = (example * n.steps + t) * n.size + start;
          const bool last = t + 1 == n.steps;
          each_vector(count, [=](int64_t i, auto some) {
            const Vector charged = load(membranes + i), threshold = load(piece.threshold + i);
            const Vector distance = charged - threshold, rise = slope(distance), spike = fire(distance, piece.inclusive);
            // No product with 0, which is NaN for membranes that are infinite; nor one with what follows the last step.
            const Vector through = detached ? all(0) : (piece.soft ? threshold : charged) * rise;
            const Vector kept = piece.soft ? all(1) : 1 - spike;
            // Beyond the last neuron it is 0, as its cotangent is.
            const Vector by_left = last ? all(0) : load(later + i), passed = last ? all(0) : by_left * (kept - through);
            const Vector by_spikes = some.load(cotangent + place + i) * rise, grad = by_spikes + passed;
            if (learned) {
              const Vector reset = last || !piece.soft ? all(0) : by_left * spike;
              const Vector by_gate = last || detached ? all(0) : by_left * through;
              const Vector before = load(membranes + i - length);
              const Vector left_before = t ? piece.after_reset(before, piece.spikes(before, i), i) : load(left + i);
              if (t > 0 || started) store(by_tau + i, load(by_tau + i) + grad * left_before);
              store(by_threshold + i, load(by_threshold + i) + by_gate - by_spikes - reset);
            }
            store(later + i, load(piece.tau + i) * grad);
            store(factor + i, load(factor + i) + grad * some.load(piece.x + place + i));
            store(offset + i, load(offset + i) + grad);
            some.store(to + place + i, grad);
          });
        }
      },
      [&](int64_t part, int worker) { sums.end(part, worker); });
  const std::array<float*, 4> results{by.factor, by.offset, by.tau, by.threshold};
  for (int kind = 0; kind < (learned ? 4 : 2); ++kind)
    for (int64_t c = 0; c < n.channels; ++c) results[kind][c] = static_cast<float>(sums.total(kind, c));
}

}  // namespace qpsnn
