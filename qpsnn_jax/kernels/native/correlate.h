// Sums over windows: the forward pass of a convolution, and its gradient by the input, of which it is one phase.
//
// Inputs that are 0 are skipped where that is faster, by lists of the others; else a block of sums is in registers.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "geometry.h"
#include "parallel.h"
#include "vectors.h"

namespace qpsnn {

// sums[i][j] = sum over r, s of in[i * sy + r - py][j * sx + s - px] * weights[r][s], for rows x columns positions.
// They are written to out[y0 + i * step_y][x0 + j * step_x].
struct Windows {
  int64_t h, w, inputs, rows, columns, outputs, kh, kw, sy, sx, py, px;
  int64_t out_h, out_w, y0 = 0, x0 = 0, step_y = 1, step_x = 1;
};

struct Spike {
  int32_t place;  // (x * inputs + c)
  float value;
};

constexpr int64_t kParts = 16, kBlockInputs = 128, kBlockVectors = kRegisters * 3 / 4;

// Weights r s c o of a block of inputs and one of outputs, o filled up with zeros to whole vectors.
struct Weights {
  std::vector<float> values;
  int64_t stride;  // floats of one r s c
};

inline void store_some(float* to, Vector x, int64_t count) {
  if (count >= kLanes)
    store(to, x);
  else if (count > 0)
    std::memcpy(to, &x, count * sizeof(float));
}

// The first `count` numbers, then zeros; vectors that fill up a block have none.
inline Vector load_some(const float* from, int64_t count) {
  Vector x = {};
  if (count <= 0) return x;
  if (count >= kLanes) return load(from);
  std::memcpy(&x, from, count * sizeof(float));
  return x;
}

// The work on bands of one image after another, for one block of inputs and all blocks of outputs.
class Correlator {
 public:
  explicit Correlator(const Windows& windows) : at_(windows) {
    const int64_t most = std::min(at_.inputs, kBlockInputs);
    spikes_.resize(at_.h * at_.w * most + 1);
    starts_.resize(at_.h * (at_.w + 1));
    left_ = std::max<int64_t>(0, at_.px);
    width_ = std::max(at_.w + left_, (at_.columns - 1) * at_.sx + at_.kw + left_ - at_.px);
  }

  // Rows [begin, end) of the sums of one image, from its inputs [first, first + count).
  void run(const float* in, const std::vector<Weights>& blocks, int64_t first, int64_t count, int64_t begin, int64_t end,
           float* out) {
    const int64_t top = std::clamp<int64_t>(begin * at_.sy - at_.py, 0, at_.h);
    const int64_t bottom = std::clamp<int64_t>((end - 1) * at_.sy + at_.kh - at_.py, top, at_.h);
    const int64_t found = list(in + first, count, top, bottom);
    const bool sparse = is_sparse(found, (bottom - top) * at_.w * count, count, blocks[0].stride / kLanes);
    if (!sparse) copy(in + first, count, begin, end);
    for (size_t block = 0; block < blocks.size(); ++block) {
      const Weights& weights = blocks[block];
      const int64_t offset = block * kBlockVectors * kLanes;
      if (!sparse) dense_rows(weights, count, begin, end, at_.outputs - offset, first > 0, out + offset);
      for (int64_t i = begin; sparse && i < end; ++i)
        sparse_row(weights, count, i, at_.outputs - offset, first > 0, place(out, i, 0) + offset);
    }
  }

 private:
  // Lists the inputs of rows [top, bottom) that are not 0; returns how many there are.
  int64_t list(const float* in, int64_t count, int64_t top, int64_t bottom) {
    Spike* next = spikes_.data();
    for (int64_t y = top; y < bottom; ++y) {
      const Spike** start = &starts_[y * (at_.w + 1)];
      const float* from = in + y * at_.w * at_.inputs;
      for (int64_t x = 0; x < at_.w; ++x, from += at_.inputs) {
        start[x] = next;
        const int32_t place = x * count;
        for (int64_t c = 0; c < count; ++c) {
          *next = {static_cast<int32_t>(place + c), from[c]};
          next += from[c] != 0;
        }
      }
      start[at_.w] = next;
    }
    return next - spikes_.data();
  }

  // By the cycles of either loop for one position.
  bool is_sparse(int64_t found, int64_t total, int64_t count, int64_t vectors) const {
    const double taps = at_.kh * at_.kw * count, rate = total ? double(found) / total : 0;
    const double skipping = taps * rate * (1.5 + 0.6 * vectors) + 20.0 * at_.kh;
    return skipping < taps * 0.6 * vectors;
  }

  void sparse_row(const Weights& weights, int64_t count, int64_t i, int64_t outputs, bool add, float* to) const {
    switch (std::min(weights.stride / kLanes, kBlockVectors)) {
      case 1: return sparse_row_of<1>(weights, count, i, outputs, add, to);
      case 2: return sparse_row_of<2>(weights, count, i, outputs, add, to);
      case 3: return sparse_row_of<3>(weights, count, i, outputs, add, to);
      case 4: return sparse_row_of<4>(weights, count, i, outputs, add, to);
      case 5: return sparse_row_of<5>(weights, count, i, outputs, add, to);
      case 6: return sparse_row_of<6>(weights, count, i, outputs, add, to);
      case 7: return sparse_row_of<7>(weights, count, i, outputs, add, to);
      case 8: return sparse_row_of<8>(weights, count, i, outputs, add, to);
      default: return sparse_row_of<kBlockVectors>(weights, count, i, outputs, add, to);
    }
  }

  template <int V>
  void sparse_row_of(const Weights& weights, int64_t count, int64_t i, int64_t outputs, bool add, float* to) const {
    const int64_t stride = weights.stride, row = at_.kw * count * stride;
    const int64_t y = i * at_.sy - at_.py, r0 = std::max<int64_t>(0, -y), r1 = std::min(at_.kh, at_.h - y);
    for (int64_t j = 0; j < at_.columns; ++j, to += at_.step_x * at_.outputs) {
      const int64_t x = j * at_.sx - at_.px;
      const int64_t x0 = std::clamp<int64_t>(x, 0, at_.w), x1 = std::clamp<int64_t>(x + at_.kw, 0, at_.w);
      Vector sum[V] = {};
      if (add)
        for (int v = 0; v < V; ++v) sum[v] = load_some(to + v * kLanes, outputs - v * kLanes);
      for (int64_t r = r0; r < r1; ++r) {
        const Spike* const* start = &starts_[(y + r) * (at_.w + 1)];
        const float* from = weights.values.data() + r * row;
        const int64_t shift = x * count;
        const Spike *spike = start[x0], *end = start[x1];
        if constexpr (V <= kBlockVectors / 4) {  // two at once, since each waits for the one before it
          Vector other[V] = {};
          for (; spike + 1 < end; spike += 2) {
            const float *one = from + (spike[0].place - shift) * stride, *two = from + (spike[1].place - shift) * stride;
            for (int v = 0; v < V; ++v) {
              sum[v] += spike[0].value * load(one + v * kLanes);
              other[v] += spike[1].value * load(two + v * kLanes);
            }
          }
          for (int v = 0; v < V; ++v) sum[v] += other[v];
        }
        for (; spike < end; ++spike) {
          const float* one = from + (spike->place - shift) * stride;
          for (int v = 0; v < V; ++v) sum[v] += spike->value * load(one + v * kLanes);
        }
      }
      for (int v = 0; v < V; ++v) store_some(to + v * kLanes, sum[v], outputs - v * kLanes);
    }
  }

  // The rows that the sums [begin, end) read, with zeros around them.
  void copy(const float* in, int64_t count, int64_t begin, int64_t end) {
    const int64_t top = begin * at_.sy - at_.py, rows = (end - 1 - begin) * at_.sy + at_.kh;
    padded_.assign(rows * width_ * count, 0.0f);
    for (int64_t r = 0; r < rows; ++r)
      if (top + r >= 0 && top + r < at_.h)
        for (int64_t x = 0; x < at_.w; ++x)
          std::copy_n(in + ((top + r) * at_.w + x) * at_.inputs, count,
                      &padded_[(r * width_ + x + left_) * count]);
  }

  float* place(float* out, int64_t i, int64_t j) const {
    return out + ((at_.y0 + i * at_.step_y) * at_.out_w + at_.x0 + j * at_.step_x) * at_.outputs;
  }

  void dense_rows(const Weights& weights, int64_t count, int64_t begin, int64_t end, int64_t outputs, bool add,
                  float* out) const {
    const int64_t vectors = weights.stride / kLanes;
    for (int64_t v = 0; v < vectors; v += 2) {
      const Block block{weights.values.data() + v * kLanes, weights.stride, count, outputs - v * kLanes, add};
      if (v + 1 < vectors)
        dense_pieces<2>(block, begin, end, out + v * kLanes);
      else
        dense_pieces<1>(block, begin, end, out + v * kLanes);
    }
  }

  // What the sums of some positions share.
  struct Block {
    const float* weights;
    int64_t stride, count, outputs;
    bool add;
  };

  template <int V>
  void dense_pieces(const Block& block, int64_t begin, int64_t end, float* out) const {
    constexpr int kMost = 6;
    const int64_t total = (end - begin) * at_.columns, pieces = ceil_div(total, kMost);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const int64_t first = total * piece / pieces;
      const int width = static_cast<int>(total * (piece + 1) / pieces - first);
      const float* in[kMost];
      float* to[kMost];
      for (int p = 0; p < width; ++p) {
        const int64_t i = (first + p) / at_.columns, j = (first + p) % at_.columns;
        in[p] = padded_.data() + (i * at_.sy * width_ + left_ - at_.px + j * at_.sx) * block.count;
        to[p] = place(out, begin + i, j);
      }
      switch (width) {
        case 1: dense<1, V>(block, in, to); break;
        case 2: dense<2, V>(block, in, to); break;
        case 3: dense<3, V>(block, in, to); break;
        case 4: dense<4, V>(block, in, to); break;
        case 5: dense<5, V>(block, in, to); break;
        default: dense<6, V>(block, in, to);
      }
    }
  }

  template <int P, int V>
  void dense(const Block& block, const float* const* in, float* const* to) const {
    const float* x[P];
    const float* from = block.weights;
    const int64_t stride = block.stride, taps = at_.kw * block.count, row = width_ * block.count;
    Vector sum[P][V] = {};
    for (int p = 0; p < P; ++p) {
      x[p] = in[p];
      for (int v = 0; block.add && v < V; ++v) sum[p][v] = load_some(to[p] + v * kLanes, block.outputs - v * kLanes);
    }
    for (int64_t r = 0; r < at_.kh; ++r) {
      for (int64_t c = 0; c < taps; ++c, from += stride) {  // the taps of a row, and their channels, are neighbours
        Vector weight[V];
        for (int v = 0; v < V; ++v) weight[v] = load(from + v * kLanes);
        for (int p = 0; p < P; ++p)
          for (int v = 0; v < V; ++v) sum[p][v] += x[p][c] * weight[v];
      }
      for (int p = 0; p < P; ++p) x[p] += row;
    }
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < V; ++v) store_some(to[p] + v * kLanes, sum[p][v], block.outputs - v * kLanes);
  }

  const Windows at_;
  int64_t left_, width_;
  std::vector<Spike> spikes_;
  std::vector<const Spike*> starts_;
  std::vector<float> padded_;
};

// All images; `weight(r, s, c, o)` reads the weights.
template <class Weight>
void correlate(const Pool& pool, const Windows& at, int64_t images, const float* in, const Weight& weight, float* out) {
  if (at.rows <= 0 || at.columns <= 0 || at.inputs == 0 || at.outputs == 0 || images == 0) return;
  std::vector<std::vector<Weights>> blocks;  // by inputs, then outputs
  const int64_t wide = kBlockVectors * kLanes;
  for (int64_t first = 0; first < at.inputs; first += kBlockInputs) {
    blocks.emplace_back();
    const int64_t count = std::min(kBlockInputs, at.inputs - first);
    for (int64_t o = 0; o < at.outputs; o += wide) {
      const int64_t outputs = std::min(wide, at.outputs - o), stride = ceil_div(outputs, kLanes) * kLanes;
      const int64_t full = stride / kLanes > 8 ? wide : stride;
      Weights packed{std::vector<float>(at.kh * at.kw * count * full), full};
      float* to = packed.values.data();
      for (int64_t r = 0; r < at.kh; ++r)
        for (int64_t s = 0; s < at.kw; ++s)
          for (int64_t c = 0; c < count; ++c, to += full)
            for (int64_t k = 0; k < outputs; ++k) to[k] = weight(r, s, first + c, o + k);
      blocks.back().push_back(std::move(packed));
    }
  }
  // Parts whatever the number of threads, so that all skip zeros in the same places.
  const int64_t bands = std::clamp<int64_t>(ceil_div(kParts, images), 1, at.rows);
  std::vector<std::unique_ptr<Correlator>> workers(pool.threads);
  parallel_for(pool, images * bands, [&](int64_t item, int worker) {
    if (!workers[worker]) workers[worker] = std::make_unique<Correlator>(at);
    const int64_t image = item / bands, band = item % bands;
    for (size_t block = 0; block < blocks.size(); ++block) {
      const int64_t first = block * kBlockInputs;
      workers[worker]->run(in + image * at.h * at.w * at.inputs, blocks[block], first,
                           std::min(kBlockInputs, at.inputs - first), at.rows * band / bands,
                           at.rows * (band + 1) / bands, out + image * at.out_h * at.out_w * at.outputs);
    }
  });
}

inline void conv_sums(const Pool& pool, const Conv& conv, const float* maps, const float* kernel, float* sums) {
  const Windows at{conv.h,  conv.w,  conv.channels, conv.oh, conv.ow, conv.outputs, conv.kh,
                   conv.kw, conv.sy, conv.sx,       conv.py, conv.px, conv.oh,      conv.ow};
  if (conv.channels == 0) std::fill_n(sums, conv.images * conv.oh * conv.ow * conv.outputs, 0.0f);
  correlate(pool, at, conv.images, maps,
            [&](int64_t r, int64_t s, int64_t c, int64_t o) {
              return kernel[((r * conv.kw + s) * conv.channels + c) * conv.outputs + o];
            },
            sums);
  // Skipped products of weights that are not finite would not show.
  std::vector<float> skipped(conv.outputs);
  for (int64_t i = 0; i < conv.kh * conv.kw * conv.channels; ++i)
    for (int64_t o = 0; o < conv.outputs; ++o) skipped[o] += 0 * kernel[i * conv.outputs + o];
  if (std::all_of(skipped.begin(), skipped.end(), [](float x) { return x == 0; })) return;
  for (int64_t i = 0; i < conv.images * conv.oh * conv.ow; ++i)
    for (int64_t o = 0; o < conv.outputs; ++o) sums[i * conv.outputs + o] += skipped[o];
}

// Positions of one phase of the stride are sums over windows of the cotangent, at stride 1.
inline void conv_input_grad(const Pool& pool, const Conv& conv, const float* cotangent, const float* kernel, float* grad) {
  const auto down = phases_of(conv.kh, conv.sy), right = phases_of(conv.kw, conv.sx);
  if (conv.sy > 1 || conv.sx > 1 || conv.outputs == 0) std::fill_n(grad, conv.images * conv.h * conv.w * conv.channels, 0.0f);
  for (const Phase& y : down)
    for (const Phase& x : right) {
      if (y.count == 0 || x.count == 0) continue;
      const int64_t y0 = ((y.phase - conv.py) % conv.sy + conv.sy) % conv.sy;
      const int64_t x0 = ((x.phase - conv.px) % conv.sx + conv.sx) % conv.sx;
      const Windows at{conv.oh, conv.ow, conv.outputs,
                       ceil_div(std::max<int64_t>(0, conv.h - y0), conv.sy),
                       ceil_div(std::max<int64_t>(0, conv.w - x0), conv.sx),
                       conv.channels, y.count, x.count, 1, 1,
                       y.count - 1 - (y0 + conv.py) / conv.sy, x.count - 1 - (x0 + conv.px) / conv.sx,
                       conv.h, conv.w, y0, x0, conv.sy, conv.sx};
      correlate(pool, at, conv.images, cotangent,
                [&](int64_t r, int64_t s, int64_t o, int64_t c) {
                  return kernel[((y.tap_of(r) * conv.kw + x.tap_of(s)) * conv.channels + c) * conv.outputs + o];
                },
                grad);
    }
}

}  // namespace qpsnn
