// Mean and variance of channels in one pass over memory.
#pragma once

#include "channels.h"

namespace qpsnn {

// Of `rows` x `channels` numbers: their means and biased variances. Distances are taken from the first row, which lies
// among the numbers, so that little is lost in the difference of the two sums.
inline void channel_moments(const Pool& pool, int64_t rows, int64_t channels, const float* x, float* mean, float* var) {
  const Pieces pieces(1, rows * channels, channels, 1024);
  const AlignedFloats first = pieces.repeated(x);
  ChannelSums sums(pieces, pool, 2);
  pieces.each(
      pool, [&](int worker) { sums.begin(worker); },
      [&](int64_t, int64_t start, int64_t count, int worker) {
        float *linear = sums.places(worker, 0), *square = sums.places(worker, 1);
        each_vector(count, [=, at = x + start, origin = first.data()](int64_t i, auto some) {
          const Vector distance = some.load(at + i) - some.load(origin + i);
          store(linear + i, load(linear + i) + distance);
          store(square + i, load(square + i) + distance * distance);
        });
      },
      [&](int64_t part, int worker) { sums.end(part, worker); });
  for (int64_t c = 0; c < channels; ++c) {
    const double distance = sums.total(0, c) / rows, spread = sums.total(1, c) / rows - distance * distance;
    mean[c] = static_cast<float>(first[c] + distance);
    var[c] = static_cast<float>(spread < 0 ? 0 : spread);
  }
}

}  // namespace qpsnn
