// Sums over windows from lists of the inputs that are not 0.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "pack.h"
#include "scatter.h"
#include "signed.h"
#include "windows.h"

namespace qpsnn {

// Where a vector has 16 lanes, weights that do not fit into the near caches come more slowly than they are added.
constexpr int64_t kNear = (kLanes == 16 ? 48 : 1 << 20) << 10;

// The cycles of one position by lists, for a block of outputs, where a share `rate` of `count` inputs is not 0 and each of
// these takes `each` beside its sums.
inline double list_cycles(const Windows& at, int64_t count, const Weights& weights, double rate, double each) {
  const double taps = static_cast<double>(at.kh * at.kw * count);
  const double vector = weights.size <= kNear ? 0.6 : 1.2;
  return taps * rate * (vector * (weights.stride / kLanes) + each) + 20.0 * at.kh;
}

// The same by blocks.
inline double block_cycles(const Windows& at, int64_t count, const Weights& weights) {
  return static_cast<double>(at.kh * at.kw * count) * 0.6 * (weights.stride / kLanes);
}

// The same by the faster of the two that skip nothing.
inline double dense_cycles(const Windows& at, int64_t count, const Weights& weights) {
  return std::min(block_cycles(at, count, weights), signed_cycles(at, count, weights));
}

// The work on one image after another, for one block of inputs and all blocks of outputs.
class Lists {
 public:
  explicit Lists(const Windows& windows) : at_(windows) {}

  // Rows [begin, end) of the sums of one image, if that is faster than by blocks; returns whether it is.
  bool add(const Part& part, int64_t begin, int64_t end) {
    const auto& blocks = part.weights;
    const int64_t count = part.count;
    const float* in = part.in + part.first;
    const auto [top, bottom] = at_.rows_read(begin, end);
    const int64_t total = (bottom - top) * at_.w * count;
    const bool scattered = blocks[0].scattered;
    const auto is_faster = [&, total](int64_t found, double each) {
      const double rate = total ? static_cast<double>(found) / total : 0;
      return list_cycles(at_, count, blocks[0], rate, each) < dense_cycles(at_, count, blocks[0]);
    };
    if (at_.w * count * at_.kw * blocks[0].stride > INT32_MAX) return false;  // offsets of lists have 32 bits
    // Inputs are often like those of the image before: what is probably not skipped is counted before it is listed.
    if (!skipped_ && !is_faster(found_in(in, count, top, bottom), scattered ? 0.5 : 1.0)) return false;
    const int64_t found = list(in, count, top, bottom);
    const bool binary = std::all_of(values_.begin(), values_.begin() + found, [](float x) { return x == 1; });
    skipped_ = true;
    if (scattered && is_faster(found, 0.5)) {
      scale(found, at_.kw * blocks[0].stride);
      scatter_rows(blocks[0], count, begin, end, part.first > 0, binary, part.out);
      return true;
    }
    skipped_ = is_faster(found, binary ? 1.0 : 1.5);
    for (size_t block = 0; skipped_ && block < blocks.size(); ++block) {
      const Weights& weights = blocks[block];
      const int64_t offset = block * kBlockVectors * kLanes;
      if (block == 0 || weights.stride != blocks[block - 1].stride) scale(found, weights.stride);
      for (int64_t i = begin; i < end; ++i)
        sparse_row(weights, count, i, at_.outputs - offset, part.first > 0, binary, at_.place(part.out, i, 0) + offset);
    }
    return skipped_;
  }

 private:
  // How many inputs of rows [top, bottom) are not 0.
  int64_t found_in(const float* in, int64_t count, int64_t top, int64_t bottom) const {
    const bool whole = count == at_.inputs;
    const int64_t length = whole ? at_.w * count : count, runs = whole ? bottom - top : (bottom - top) * at_.w;
    int64_t found = 0;
    in += top * at_.w * at_.inputs;
    for (int64_t run = 0; run < runs; ++run, in += whole ? length : at_.inputs) {
      int32_t some = 0;
      for (int64_t i = 0; i < length; ++i) some += in[i] != 0;
      found += some;
    }
    return found;
  }

  // Lists the inputs of rows [top, bottom) that are not 0, at x * count + c; returns how many there are.
  int64_t list(const float* in, int64_t count, int64_t top, int64_t bottom) {
    if (starts_.empty()) {
      places_.resize(at_.h * at_.w * std::min(at_.inputs, kBlockInputs) + kPackedMore);
      values_.resize(places_.size());
      offsets_.resize(places_.size());
      starts_.resize(at_.h * (at_.w + 1));
    }
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
        run(given, weights.turned.data() + r * count * at_.kw * stride, row_.data(), stride);
      }
      // Columns that no input reaches are 0.
      for (int64_t j = 0; j < at_.columns; ++j) {
        float* to = at_.place(out, i, j);
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
    const int64_t vectors = weights.stride / kLanes;  // up to 8, or all of a block
    if (vectors > 8) return run(std::integral_constant<int, kBlockVectors>());
    with_constant<8>(vectors, run);
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
        // Two at once, since each waits for the one before it. That is another order than the blocks', so that what blocks
        // add for some of the images and lists for others has to be exact.
        if (V <= kBlockVectors / 4 && (weights.gradient || (weights.integers && Binary))) {
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

  const Windows at_;
  bool skipped_ = true;
  AlignedVector<int32_t> places_, offsets_;
  std::vector<int64_t> starts_;
  AlignedFloats values_;
  AlignedFloats row_;
};

}  // namespace qpsnn
