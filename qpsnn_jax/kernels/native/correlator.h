// Sums over windows for one image: inputs that are 0 are skipped where that is faster, by lists of the others; else a block
// of sums is in registers.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "geometry.h"
#include "pack.h"
#include "scatter.h"
#include "vectors.h"

namespace qpsnn {

// sums[i][j] = sum over r, s of in[i * sy + r - py][j * sx + s - px] * weights[r][s], for rows x columns positions.
// They are written to out[y0 + i * step_y][x0 + j * step_x].
struct Windows {
  int64_t h, w, inputs, rows, columns, outputs, kh, kw, sy, sx, py, px;
  int64_t out_h, out_w, y0 = 0, x0 = 0, step_y = 1, step_x = 1;
};

constexpr int64_t kParts = 16, kBlockInputs = 128, kBlockVectors = kRegisters * 3 / 4;

// Weights r s c o of a block of inputs and one of outputs, o filled up with zeros to whole vectors. `turned` are the same as
// r c s o, from the last s to the first, where they can be scattered.
struct Weights {
  AlignedFloats values, turned;
  int64_t stride;  // floats of one r s c
};

// Whether the taps of an input along a row are few vectors.
inline bool are_scattered(const Windows& at, int64_t vectors) {
  return at.sy == 1 && at.sx == 1 && at.outputs <= kBlockVectors * kLanes && at.kw * vectors <= kMostScattered;
}

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
    places_.resize(at_.h * at_.w * most + kPackedMore);
    values_.resize(places_.size());
    offsets_.resize(places_.size());
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
    const bool binary = std::all_of(values_.begin(), values_.begin() + found, [](float x) { return x == 1; });
    const int64_t vectors = blocks[0].stride / kLanes, total = (bottom - top) * at_.w * count;
    const double rate = total ? static_cast<double>(found) / total : 0, taps = static_cast<double>(at_.kh * at_.kw * count);
    // The cycles of each loop for one position; offsets of lists have 32 bits.
    const bool fits = at_.w * count * at_.kw * blocks[0].stride <= INT32_MAX;
    const double dense = fits ? taps * 0.6 * vectors : 0;
    if (!blocks[0].turned.empty() && taps * rate * (0.6 * vectors + 0.5) + 20.0 * at_.kh < dense) {
      scale(found, at_.kw * blocks[0].stride);
      return scatter_rows(blocks[0], count, begin, end, first > 0, binary, out);
    }
    const bool sparse = taps * rate * ((binary ? 1.0 : 1.5) + 0.6 * vectors) + 20.0 * at_.kh < dense;
    if (!sparse) copy(in + first, count, begin, end);
    for (size_t block = 0; block < blocks.size(); ++block) {
      const Weights& weights = blocks[block];
      const int64_t offset = block * kBlockVectors * kLanes;
      if (!sparse) dense_rows(weights, count, begin, end, at_.outputs - offset, first > 0, out + offset);
      if (sparse && (block == 0 || weights.stride != blocks[block - 1].stride))
        scale(found, weights.stride);
      for (int64_t i = begin; sparse && i < end; ++i)
        sparse_row(weights, count, i, at_.outputs - offset, first > 0, binary, place(out, i, 0) + offset);
    }
  }

 private:
  // Lists the inputs of rows [top, bottom) that are not 0, at x * count + c; returns how many there are.
  int64_t list(const float* in, int64_t count, int64_t top, int64_t bottom) {
    int64_t found = 0;
    for (int64_t y = top; y < bottom; ++y) {
      int64_t* start = &starts_[y * (at_.w + 1)];
      const float* from = in + y * at_.w * at_.inputs;
      for (int64_t x = 0; x < at_.w; ++x, from += at_.inputs) {
        start[x] = found;
        found += pack(from, count, static_cast<int32_t>(x * count), &places_[found], &values_[found]);
      }
      start[at_.w] = found;
    }
    return found;
  }

  void scale(int64_t found, int64_t factor) {
    for (int64_t k = 0; k < found; ++k) offsets_[k] = places_[k] * static_cast<int32_t>(factor);
  }

  void scatter_rows(const Weights& weights, int64_t count, int64_t begin, int64_t end, bool add, bool binary, float* out) {
    const int64_t stride = weights.stride, before = at_.px - (at_.kw - 1);
    const Scatter run = scatter_of(at_.kw * stride / kLanes, binary);
    for (int64_t i = begin; i < end; ++i) {
      row_.assign((at_.w + at_.kw - 1) * stride, 0.0f);
      for (int64_t r = std::max<int64_t>(0, at_.py - i); r < std::min(at_.kh, at_.h + at_.py - i); ++r) {
        const Scattered given{&starts_[(i + r - at_.py) * (at_.w + 1)], offsets_.data(), values_.data(), at_.w,
                              count * at_.kw * stride};
        run(given, &weights.turned[r * count * at_.kw * stride], row_.data(), stride);
      }
      // Columns that no input reaches are 0.
      for (int64_t j = 0; j < at_.columns; ++j) {
        float* to = place(out, i, j);
        const int64_t column = j - before;
        const bool within = column >= 0 && column < at_.w + at_.kw - 1;
        for (int64_t o = 0; o < stride; o += kLanes) {
          const Vector sum = within ? load(&row_[column * stride + o]) : Vector{};
          store_some(to + o, add ? load_some(to + o, at_.outputs - o) + sum : sum, at_.outputs - o);
        }
      }
    }
  }

  void sparse_row(const Weights& weights, int64_t count, int64_t i, int64_t outputs, bool add, bool binary, float* to) const {
    const auto run = [&](auto vectors) {
      if (binary)
        sparse_row_of<vectors, true>(weights, count, i, outputs, add, to);
      else
        sparse_row_of<vectors, false>(weights, count, i, outputs, add, to);
    };
    switch (std::min(weights.stride / kLanes, kBlockVectors)) {
      case 1: return run(std::integral_constant<int, 1>());
      case 2: return run(std::integral_constant<int, 2>());
      case 3: return run(std::integral_constant<int, 3>());
      case 4: return run(std::integral_constant<int, 4>());
      case 5: return run(std::integral_constant<int, 5>());
      case 6: return run(std::integral_constant<int, 6>());
      case 7: return run(std::integral_constant<int, 7>());
      case 8: return run(std::integral_constant<int, 8>());
      default: return run(std::integral_constant<int, kBlockVectors>());
    }
  }

  // One row of sums; the inputs that are not 0 are all 1 if they are `Binary`.
  template <int V, bool Binary>
  void sparse_row_of(const Weights& weights, int64_t count, int64_t i, int64_t outputs, bool add, float* to) const {
    const int64_t stride = weights.stride, row = at_.kw * count * stride;
    const int64_t y = i * at_.sy - at_.py, r0 = std::max<int64_t>(0, -y), r1 = std::min(at_.kh, at_.h - y);
    const auto add_row = [&](Vector(&sum)[V], const float* from, int64_t k) {
      const float *one = from + offsets_[k], value = values_[k];
      for (int v = 0; v < V; ++v)
        sum[v] += Binary ? load(one + v * kLanes) : value * load(one + v * kLanes);
    };
    for (int64_t j = 0; j < at_.columns; ++j, to += at_.step_x * at_.outputs) {
      const int64_t x = j * at_.sx - at_.px;
      const int64_t x0 = std::clamp<int64_t>(x, 0, at_.w), x1 = std::clamp<int64_t>(x + at_.kw, 0, at_.w);
      Vector sum[V] = {};
      if (add)
        for (int v = 0; v < V; ++v) sum[v] = load_some(to + v * kLanes, outputs - v * kLanes);
      for (int64_t r = r0; r < r1; ++r) {
        const int64_t* start = &starts_[(y + r) * (at_.w + 1)];
        const float* from = weights.values.data() + r * row - x * count * stride;
        int64_t k = start[x0];
        const int64_t end = start[x1];
        if constexpr (V <= kBlockVectors / 4) {  // two at once, since each waits for the one before it
          Vector other[V] = {};
          for (; k + 1 < end; k += 2) {
            add_row(sum, from, k);
            add_row(other, from, k + 1);
          }
          for (int v = 0; v < V; ++v) sum[v] += other[v];
        }
        for (; k < end; ++k) add_row(sum, from, k);
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
  std::vector<int32_t> places_, offsets_;
  std::vector<int64_t> starts_;
  std::vector<float> values_, padded_;
  AlignedFloats row_;
};

}  // namespace qpsnn
