// The sizes of a convolution, and its taps by phase of the stride.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace qpsnn {

// Maps b h w c, kernel kh kw c o, sums b oh ow o.
struct Conv {
  int64_t images, h, w, channels, oh, ow, outputs, kh, kw, sy, sx, py, px;
};

// Along one axis: the taps of the positions whose distance to a window's start is `phase` modulo the stride.
// Position p lies in the `count` windows from (p + padding) / stride - (count - 1) on; window i sees it by tap_of(i).
struct Phase {
  int64_t phase, stride, count;
  int64_t tap_of(int64_t i) const { return phase + stride * (count - 1 - i); }
};

inline std::vector<Phase> phases_of(int64_t kernel, int64_t stride) {
  std::vector<Phase> phases;
  for (int64_t i = 0; i < stride; ++i) phases.push_back({i, stride, i < kernel ? ceil_div(kernel - i, stride) : 0});
  return phases;
}

}  // namespace qpsnn
