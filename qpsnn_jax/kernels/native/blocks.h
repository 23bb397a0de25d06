// Sums over windows in blocks: some positions times two vectors of outputs, whose sums stay in registers.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "windows.h"

namespace qpsnn {

constexpr int kMostPositions = 6;

// The work on one block of inputs and all blocks of outputs.
class Blocks {
 public:
  explicit Blocks(const Windows& windows) : at_(windows) {
    left_ = std::max<int64_t>(0, at_.px);
    width_ = std::max(at_.w + left_, (at_.columns - 1) * at_.sx + at_.kw + left_ - at_.px);
  }

  // Rows [begin, end) of the sums of one image. Positions are neighbours.
  void rows(const Part& part, int64_t begin, int64_t end) {
    copy(part.in + part.first, part.count, begin, end);
    each_pair(part, [&](auto vectors, const Block& block, float* out) { dense_rows<vectors>(block, begin, end, out); });
  }

  // All sums of the images `which`, at most kMostPositions. A block has one position of all of them, so that no zeros around
  // maps are read.
  void images(const Part& part, const std::vector<int64_t>& which) {
    const int64_t count = part.count, size = copy_size(count), images = which.size();
    copies_.resize(images * size);
    for (int64_t k = 0; k < images; ++k)
      copy_pixels(part.in + which[k] * at_.in_size() + part.first, at_.h * at_.w, count, &copies_[k * size]);
    each_pair(part, [&](auto vectors, const Block& block, float* out) { dense_images<vectors>(block, which, out); });
  }

 private:
  // What the sums of some positions share.
  struct Block {
    const float* weights;
    int64_t stride, count, outputs;
    bool add;
  };

  // The taps of a window: rows, and in each of them neighbours with all their channels. Its inputs' rows are `step` apart.
  struct Window {
    const float* weights;
    int64_t rows, taps, step;
  };

  // The rows that the sums [begin, end) read, with zeros around them.
  void copy(const float* in, int64_t count, int64_t begin, int64_t end) {
    const int64_t top = begin * at_.sy - at_.py, rows = (end - 1 - begin) * at_.sy + at_.kh;
    padded_.assign(rows * width_ * count, 0.0f);
    for (int64_t r = 0; r < rows; ++r)
      if (top + r >= 0 && top + r < at_.h)
        copy_pixels(in + (top + r) * at_.w * at_.inputs, at_.w, count, &padded_[(r * width_ + left_) * count]);
  }

  // `count` inputs of neighbouring pixels.
  void copy_pixels(const float* from, int64_t pixels, int64_t count, float* to) const {
    if (count == at_.inputs) return void(std::copy_n(from, pixels * count, to));
    for (int64_t x = 0; x < pixels; ++x) std::copy_n(from + x * at_.inputs, count, to + x * count);
  }

  // work(vectors, block, out) for two vectors of outputs at a time, or the last one.
  template <class Work>
  void each_pair(const Part& part, const Work& work) const {
    for (size_t block = 0; block < part.weights.size(); ++block) {
      // Blocks are filled up with zeros.
      const int64_t stride = part.weights[block].stride, outputs = at_.outputs - block * kBlockVectors * kLanes;
      for (int64_t v = 0; v < std::min(stride, outputs); v += 2 * kLanes) {
        const int64_t first = block * kBlockVectors * kLanes + v;
        const float* values = part.weights[block].values.data() + v;
        const Block pair{values, stride, part.count, at_.outputs - first, part.first > 0};
        if (v + kLanes < stride)
          work(std::integral_constant<int, 2>(), pair, part.out + first);
        else
          work(std::integral_constant<int, 1>(), pair, part.out + first);
      }
    }
  }

  template <int V>
  void dense_rows(const Block& block, int64_t begin, int64_t end, float* out) const {
    const int64_t total = (end - begin) * at_.columns, pieces = ceil_div(total, kMostPositions);
    int64_t i = 0, j = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = total * piece / pieces;
      const int width = static_cast<int>(total * (piece + 1) / pieces - first);
      const float* in[kMostPositions];
      float* to[kMostPositions];
      for (int p = 0; p < width; ++p, ++j) {
        if (j == at_.columns) ++i, j = 0;
        in[p] = padded_.data() + (i * at_.sy * width_ + left_ - at_.px + j * at_.sx) * block.count;
        to[p] = at_.place(out, begin + i, j);
      }
      const Window whole{block.weights, at_.kh, at_.kw * block.count, width_ * block.count};
      with_constant<kMostPositions>(width, [&](auto positions) { dense<positions, V>(block, whole, in, to); });
    }
  }

  // Copies of a power of two would share few places of the cache.
  int64_t copy_size(int64_t count) const { return at_.h * at_.w * count + 16; }

  // The sums of the images `which` at one position after another.
  template <int V>
  void dense_images(const Block& block, const std::vector<int64_t>& which, float* out) const {
    const int width = static_cast<int>(which.size());
    const float* in[kMostPositions];
    float* to[kMostPositions];
    for (int64_t i = 0; i < at_.rows; ++i)
      for (int64_t j = 0; j < at_.columns; ++j) {
        // The taps within the maps.
        const int64_t y = i * at_.sy - at_.py, x = j * at_.sx - at_.px;
        const int64_t r0 = std::max<int64_t>(0, -y), r1 = std::min(at_.kh, at_.h - y);
        const int64_t s0 = std::max<int64_t>(0, -x), s1 = std::max(s0, std::min(at_.kw, at_.w - x));
        const float* weights = block.weights + (r0 * at_.kw + s0) * block.count * block.stride;
        const Window part{weights, r1 - r0, (s1 - s0) * block.count, at_.w * block.count};
        for (int p = 0; p < width; ++p) {
          in[p] = copies_.data() + p * copy_size(block.count) + ((y + r0) * at_.w + x + s0) * block.count;
          to[p] = at_.place(out + which[p] * at_.out_size(), i, j);
        }
        with_constant<kMostPositions>(width, [&](auto images) { dense<images, V>(block, part, in, to); });
      }
  }

  // Not inlined, since twelve of it are enough to compile.
  template <int P, int V>
  [[gnu::noinline]] void dense(const Block& block, const Window& window, const float* const* in, float* const* to) const {
    const float* x[P];
    const int64_t stride = block.stride, row = at_.kw * block.count * stride;
    Vector sum[P][V] = {};
    for (int p = 0; p < P; ++p) {
      x[p] = in[p];
      for (int v = 0; block.add && v < V; ++v) sum[p][v] = load_some(to[p] + v * kLanes, block.outputs - v * kLanes);
    }
    for (int64_t r = 0; r < window.rows; ++r) {
      const float* from = window.weights + r * row;
      for (int64_t c = 0; c < window.taps; ++c, from += stride) {
        Vector weight[V];
        for (int v = 0; v < V; ++v) weight[v] = held(load(from + v * kLanes));
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < V; ++v) sum[p][v] += x[p][c] * weight[v];
      }
      for (int p = 0; p < P; ++p) x[p] += window.step;
    }
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < V; ++v) store_some(to[p] + v * kLanes, sum[p][v], block.outputs - v * kLanes);
  }

  const Windows at_;
  int64_t left_, width_;
  AlignedFloats padded_, copies_;
};

}  // namespace qpsnn
