// One row of sums from lists of the inputs that are not 0, for few outputs at stride 1: the taps of an input are neighbours in
// the row, so that all inputs of a pixel add to the same few vectors.
#pragma once

#include <array>
#include <utility>

#include "vectors.h"

namespace qpsnn {

// Vectors that an input may add, those of its taps along a row; their sums over a pixel stay in registers.
constexpr int kMostScattered = kRegisters * 3 / 4;

// The inputs of one row of maps that are not 0: where their weights are, from those of their pixel's first channel on, and
// their values. Those of pixel x are from start[x] up to start[x + 1].
struct Scattered {
  const int64_t* start;
  const int32_t* offsets;
  const float* values;
  int64_t width, pixel;  // pixels, and the offset from one to the next
};

// Adds them to a row of sums, in which pixels are `stride` floats apart.
template <int N, bool Binary>
void scatter(const Scattered& given, const float* weights, float* row, int64_t stride) {
  for (int64_t x = 0; x < given.width; ++x, row += stride) {
    const int64_t begin = given.start[x], end = given.start[x + 1];
    if (begin == end) continue;
    Vector sum[N];
    for (int v = 0; v < N; ++v) sum[v] = load(row + v * kLanes);
    for (int64_t k = begin; k < end; ++k) {
      const float *from = weights + (given.offsets[k] - x * given.pixel), value = given.values[k];
      for (int v = 0; v < N; ++v) sum[v] += Binary ? load(from + v * kLanes) : value * load(from + v * kLanes);
    }
    for (int v = 0; v < N; ++v) store(row + v * kLanes, sum[v]);
  }
}

using Scatter = void (*)(const Scattered&, const float*, float*, int64_t);

template <bool Binary, int... N>
constexpr std::array<Scatter, sizeof...(N)> scatters(std::integer_sequence<int, N...>) {
  return {scatter<N, Binary>...};
}

// scatter() for a number of vectors.
inline Scatter scatter_of(int64_t vectors, bool binary) {
  using Sizes = std::make_integer_sequence<int, kMostScattered + 1>;
  static constexpr auto ones = scatters<true>(Sizes()), any = scatters<false>(Sizes());
  return (binary ? ones : any)[vectors];
}

}  // namespace qpsnn
