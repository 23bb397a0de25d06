// What a convolution's forward pass and its gradient w.r.t. the input have in common: sums over windows of maps.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "memory.h"
#include "packed.h"
#include "scatter.h"
#include "vectors.h"

namespace qpsnn {

// sums[i][j] = sum over r, s of in[i * sy + r - py][j * sx + s - px] * weights[r][s], for rows x columns positions.
// They are written to out[y0 + i * step_y][x0 + j * step_x].
struct Windows {
  int64_t h, w, inputs, rows, columns, outputs, kh, kw, sy, sx, py, px;
  int64_t out_h, out_w, y0 = 0, x0 = 0, step_y = 1, step_x = 1;

  int64_t in_size() const { return h * w * inputs; }
  int64_t out_size() const { return out_h * out_w * outputs; }
  // The rows of the maps, from the first up to the second, that rows [begin, end) of the sums read.
  std::pair<int64_t, int64_t> rows_read(int64_t begin, int64_t end) const {
    const int64_t top = std::clamp<int64_t>(begin * sy - py, 0, h);
    return {top, std::clamp<int64_t>((end - 1) * sy + kh - py, top, h)};
  }
  float* place(float* out, int64_t i, int64_t j) const {
    return out + ((y0 + i * step_y) * out_w + x0 + j * step_x) * outputs;
  }
};

constexpr int64_t kBlockInputs = 128, kBlockVectors = kRegisters * 3 / 4;

// All sums of four neighbouring weights that are small integers, none of others: pairs of outputs, r s, four inputs, the two
// outputs, the 16 sums. The sums of the tables from one of the `ends`, or the first table, up to the next fit into bytes.
struct Tables {
  Unset<int8_t> sums;
  std::vector<int64_t> ends;
};

// Weights that are sums of one or two sizes with signs, and the signs of five inputs, by vector of outputs, r s, five inputs, size and
// output: the number of the sum of five with such signs, the first of them +, and in the highest bit whether the first is -.
struct SignedWeights {
  std::vector<float> sizes;
  AlignedVector<int8_t> signs;
};

// Weights r s c o of a block of inputs and one of outputs, o filled up with zeros to whole vectors. `turned` are the same as
// r c s o, from the last s to the first, if they are `scattered`.
struct Weights {
  int64_t size = 0, stride = 0;  // floats of all, and of one r s c
  LazyFloats values, turned;
  bool scattered = false;
  bool gradient = false;  // whose sums may be in any order
  bool integers = false;  // up to 255, whose sums are exact in any order where the inputs are 0 and 1
  Tables tables = {};
  SignedWeights signs = {};
};

// Whether the taps of an input along a row are few vectors.
inline bool are_scattered(const Windows& at, int64_t vectors) {
  return at.sy == 1 && at.sx == 1 && at.outputs <= kBlockVectors * kLanes && at.kw * vectors <= kMostScattered;
}

// What some images give to their sums: their inputs [first, first + count), by the weights of these for all outputs. Later
// parts of the inputs are added to what earlier ones gave. The inputs are those of `spikes` from `image` on if these are given.
struct Part {
  const float* in;
  const PackedSpikes* spikes;
  int64_t image;
  const std::vector<Weights>& weights;
  int64_t first, count;
  float* out;
};

}  // namespace qpsnn
