// Leaky integrate-and-fire neurons over time and their gradient, each in one pass over memory.
//
// A piece of the neurons of an example goes through all steps while its potentials stay in the first level of the cache.
#pragma once

#include <algorithm>

#include "parallel.h"
#include "vectors.h"

namespace qpsnn {

// Arrays are `batch` x `steps` x `size`. Neurons fire at the threshold too if it is `inclusive`.
struct Neurons {
  int64_t batch, steps, size;
  float tau, threshold;
  bool inclusive, soft;
};

constexpr int64_t kPiece = 2048;

typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));

inline Vector all(float x) { return x - Vector{}; }
inline Vector magnitude(Vector x) { return x < 0 ? -x : x; }

// 1 or 0 where the distance to the threshold is past it, or at it with `inclusive`; NaN where it is NaN.
inline Vector fire(Vector distance, bool inclusive) {
  const Whole past = inclusive ? distance >= 0 : distance > 0;
  return distance == distance ? (past ? all(1) : all(0)) : distance;
}

// e to the power of x, -87 < x <= 0, within 2 units in the last place.
inline Vector exponential(Vector x) {
  x = x > -87 ? x : all(-87);
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

// The first `count` lanes, all if it is larger.
inline Vector load(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector x = {};
  std::memcpy(&x, from, count * sizeof(float));
  return x;
}

inline void store(float* to, Vector x, int64_t count) {
  if (count >= kLanes) return store(to, x);
  std::memcpy(to, &x, count * sizeof(float));
}

// piece(offset, start, count) for the pieces of every example; `offset` is that of the piece at the first step, `start` that in
// an array of one step.
template <class Piece>
void for_pieces(const Pool& pool, const Neurons& n, const Piece& piece) {
  const int64_t pieces = ceil_div(n.size, kPiece);
  parallel_for(pool, n.batch * pieces, [&](int64_t item, int) {
    const int64_t start = item % pieces * kPiece;
    const int64_t example = item / pieces * n.size;
    piece(example * n.steps + start, example + start, std::min(kPiece, n.size - start));
  });
}

// Spikes or membranes before the reset, which may be written over the currents. `initial` is the potentials before the first
// step, null for zeros.
template <bool Membranes>
void lif(const Pool& pool, const Neurons& n, const float* currents, const float* initial, float* result) {
  for_pieces(pool, n, [&](int64_t offset, int64_t start, int64_t count) {
    float left[kPiece] = {};
    if (initial) std::copy_n(initial + start, count, left);
    for (int64_t t = 0; t < n.steps; ++t, offset += n.size)
      for (int64_t i = 0; i < count; i += kLanes) {
        const Vector charged = n.tau * load(left + i) + load(currents + offset + i, count - i);
        const Vector spike = fire(charged - n.threshold, n.inclusive);
        store(left + i, spike == 1 ? charged - (n.soft ? all(n.threshold) : charged) : charged);
        store(result + offset + i, Membranes ? charged : spike, count - i);
      }
  });
}

// The gradient of the spikes by the currents, which may be written over the cotangent of the spikes; `detached` omits what
// flows through resets.
template <class Slope>
void lif_grad(const Pool& pool, const Neurons& n, Slope slope, bool detached, const float* membranes,
              const float* cotangent, float* result) {
  const float attached = detached ? 0 : 1;
  for_pieces(pool, n, [&](int64_t offset, int64_t, int64_t count) {
    float later[kPiece] = {};
    offset += n.steps * n.size;
    for (int64_t t = 0; t < n.steps; ++t) {
      offset -= n.size;
      for (int64_t i = 0; i < count; i += kLanes) {
        const Vector charged = load(membranes + offset + i, count - i), distance = charged - n.threshold;
        const Vector rise = slope(distance), through = attached * (n.soft ? all(n.threshold) : charged) * rise;
        const Vector kept = n.soft ? all(1) : 1 - fire(distance, n.inclusive);
        const Vector gradient = load(cotangent + offset + i, count - i) * rise + load(later + i) * (kept - through);
        store(later + i, n.tau * gradient);
        store(result + offset + i, gradient, count - i);
      }
    }
  });
}

}  // namespace qpsnn
