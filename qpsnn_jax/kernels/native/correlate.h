// Sums over windows: the forward pass of a convolution, and its gradient w.r.t. the input, of which it is one phase.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "blocks.h"
#include "geometry.h"
#include "lists.h"
#include "lookup.h"
#include "parallel.h"
#include "signed.h"
#include "tables.h"

namespace qpsnn {

constexpr int64_t kParts = 16, kTogether = 8;
// Positions of maps so small that zeros around them are worth avoiding, and of all images, so many that tables are worth
// filling.
constexpr int64_t kSmall = 256, kMany = 1024;

// Some images at once, in the way that is the fastest for them or for each of them.
class Correlator {
 public:
  explicit Correlator(const Windows& at) : at_(at), lookup_(at), lists_(at), signed_(at), blocks_(at) {}

  void rows(Part part, int64_t begin, int64_t end) {
    if (look_up(part, 1, begin, end)) return;
    if (part.spikes) unpack(part, 1, at_.rows_read(begin, end));
    if (!lists_.add(part, begin, end)) dense_rows(part, begin, end);
  }

  void images(Part part, int64_t images) {
    if (look_up(part, images, 0, at_.rows)) return;
    if (part.spikes) unpack(part, images, {0, at_.h});
    others_.clear();
    for (int64_t image = 0; image < images; ++image)
      if (!lists_.add(at(part, image), 0, at_.rows)) others_.push_back(image);
    if (others_.size() < kFew || are_signed(part)) {
      for (int64_t image : others_) dense_rows(at(part, image), 0, at_.rows);
      return;
    }
    const int64_t count = others_.size(), parts = ceil_div(count, kMostPositions);
    for (int64_t i = 0; i < parts; ++i)
      blocks_.images(part, {others_.begin() + count * i / parts, others_.begin() + count * (i + 1) / parts});
  }

 private:
  static constexpr size_t kFew = 3;  // images that fill too few registers

  // Only if all parts before were looked up, whose sums are exact then: else the bits would depend on which images go
  // together.
  bool look_up(const Part& part, int64_t images, int64_t begin, int64_t end) {
    looked_up_ = (part.first == 0 || looked_up_) && !any_nan(part, images) && lookup_.add(part, images, begin, end);
    return looked_up_;
  }

  static bool any_nan(const Part& part, int64_t images) {
    bool found = false;
    for (int64_t k = 0; part.spikes && k < images; ++k) found |= part.spikes->any_nan(part.image + k);
    return found;
  }

  // Numbers in the place of packed spikes, of some rows.
  void unpack(Part& part, int64_t images, std::pair<int64_t, int64_t> rows) {
    const std::array<int64_t, 4> place{part.image, images, rows.first, rows.second};
    if (place != unpacked_) {
      floats_.resize(images * at_.in_size());
      const int64_t pixel = rows.first * at_.w, pixels = (rows.second - rows.first) * at_.w;
      for (int64_t k = 0; k < images; ++k)
        part.spikes->read(part.image + k, pixel, pixels, &floats_[k * at_.in_size() + pixel * at_.inputs]);
    }
    unpacked_ = place, part.in = floats_.data(), part.spikes = nullptr;
  }

  void dense_rows(const Part& part, int64_t begin, int64_t end) {
    are_signed(part) ? signed_.rows(part, begin, end) : blocks_.rows(part, begin, end);
  }

  bool are_signed(const Part& part) const {
    return std::all_of(part.weights.begin(), part.weights.end(), [&](const Weights& weights) {
      return signed_cycles(at_, part.count, weights) < block_cycles(at_, part.count, weights);
    });
  }

  Part at(const Part& part, int64_t image) const {
    const int64_t from = image * at_.in_size(), to = image * at_.out_size();
    return {part.in + from, nullptr, 0, part.weights, part.first, part.count, part.out + to};
  }

  const Windows at_;
  Lookup lookup_;
  Lists lists_;
  SignedSums signed_;
  Blocks blocks_;
  AlignedFloats floats_;
  std::array<int64_t, 4> unpacked_{-1};  // image, images and rows that floats_ has
  std::vector<int64_t> others_;
  bool looked_up_ = false;
};

// copy(r, s, c, o, count, to) copies the weights of outputs [o, o + count) at a tap and an input. A function whatever the kernel
// is, since each kind of it would compile all that reads weights once more.
using CopyWeights = std::function<void(int64_t, int64_t, int64_t, int64_t, int64_t, float*)>;

// The weights of some inputs and outputs, with tables if sums are looked up so `often` that it is worth filling them; with signs
// if gradients have these.
inline Weights packed(const Windows& at, int64_t first, int64_t count, int64_t o, int64_t outputs, bool often, bool signs,
                      const CopyWeights& weights) {
  const int64_t vectors = ceil_div(outputs, kLanes), stride = (vectors > 8 ? kBlockVectors : vectors) * kLanes;
  const int64_t kh = at.kh, kw = at.kw, size = kh * kw * count * stride;
  const LazyFloats values([=](AlignedFloats& to) {
    to.resize(size);
    for (int64_t i = 0; i < kh * kw * count; ++i)
      weights(i / count / kw, i / count % kw, first + i % count, o, outputs, &to[i * stride]);
  });
  const LazyFloats turned([=](AlignedFloats& to) {
    to.resize(size);
    for (int64_t i = 0; i < kh * count * kw; ++i) {
      const int64_t r = i / kw / count, c = i / kw % count, s = kw - 1 - i % kw;
      std::copy_n(values.data() + ((r * kw + s) * count + c) * stride, stride, &to[i * stride]);
    }
  });
  Weights found{size, stride, values, turned, are_scattered(at, stride / kLanes), signs};
  const auto row = [&](int64_t tap, int64_t c, float* to) { weights(tap / kw, tap % kw, first + c, o, outputs, to); };
  found.integers = look_over(kh * kw, count, stride, row, often && !signs ? &found.tables : nullptr) <= 255;
  if (often && signs) found.signs = signed_weights(kh * kw, count, outputs, values.data(), stride);
  if (found.tables.sums.empty()) values.data();  // now, one block by each thread, since they will be used
  return found;
}

// The weights of all inputs, by block of inputs, then of outputs.
using BlockWeights = std::vector<std::vector<Weights>>;

// With `signs` the order of a sum may depend on how many images there are, as only that of gradients may.
inline BlockWeights block_weights(const Pool& pool, const Windows& at, int64_t images, bool signs, const CopyWeights& weights) {
  const int64_t wide = kBlockVectors * kLanes, columns = ceil_div(at.outputs, wide);
  BlockWeights blocks(ceil_div(at.inputs, kBlockInputs));
  for (auto& block : blocks) block.resize(columns);
  const bool many = images * at.rows * at.columns >= kMany;
  parallel_for(pool, blocks.size() * columns, [&](int64_t item, int) {
    const int64_t first = item / columns * kBlockInputs, count = std::min(kBlockInputs, at.inputs - first);
    const int64_t o = item % columns * wide, outputs = std::min(wide, at.outputs - o);
    blocks[item / columns][item % columns] = packed(at, first, count, o, outputs, many, signs, weights);
  });
  return blocks;
}

// Rows [begin, end) of the sums of some examples, `first` and those after it.
struct Band {
  int64_t first, examples, begin, end;
};

// All sums of `examples`, each of `each` images. Those of a band are written to to(band, worker), where its first example begins;
// done(band, worker) follows.
inline void correlate(const Pool& pool, const Windows& at, const BlockWeights& blocks, int64_t examples, int64_t each,
                      const Maps& in, const std::function<float*(const Band&, int)>& to,
                      const std::function<void(const Band&, int)>& done) {
  const int64_t images = examples * each;
  // Parts whatever the number of threads, so that all skip zeros in the same places.
  const int64_t bands = std::clamp<int64_t>(ceil_div(kParts, images), 1, at.rows);
  const bool small = bands == 1 && at.rows * at.columns <= kSmall && at.h * at.w <= 4 * kSmall;
  // Groups of up to kTogether images, as many for each thread.
  const int64_t threads = std::max(1, pool.threads), rounds = ceil_div(ceil_div(images, kTogether), threads);
  const int64_t groups = small ? std::min(examples, rounds * threads) : examples;
  std::vector<std::unique_ptr<Correlator>> workers(pool.threads);
  parallel_for(pool, groups * bands, [&](int64_t item, int worker) {
    if (!workers[worker]) workers[worker] = std::make_unique<Correlator>(at);
    const int64_t group = item / bands, part = item % bands, first = examples * group / groups;
    const Band band{first, examples * (group + 1) / groups - first, at.rows * part / bands, at.rows * (part + 1) / bands};
    float* out = to(band, worker);
    const int64_t images = band.examples * each, some = small ? images : 1;
    for (int64_t image = 0; image < images; image += some)
      for (size_t block = 0; block < blocks.size(); ++block) {
        const int64_t input = block * kBlockInputs, count = std::min(kBlockInputs, at.inputs - input);
        const int64_t place = first * each + image;
        const float* from = in.spikes ? nullptr : in.floats + place * at.in_size();
        const Part part{from, in.spikes, place, blocks[block], input, count, out + image * at.out_size()};
        small ? workers[worker]->images(part, some) : workers[worker]->rows(part, band.begin, band.end);
      }
    done(band, worker);
  });
}

// All images.
inline void correlate(const Pool& pool, const Windows& at, int64_t images, const Maps& in, bool signs, const CopyWeights& weights,
                      float* out) {
  if (at.rows <= 0 || at.columns <= 0 || at.inputs == 0 || at.outputs == 0 || images == 0) return;
  correlate(pool, at, block_weights(pool, at, images, signs, weights), images, 1, in,
            [&](const Band& band, int) { return out + band.first * at.out_size(); }, [](const Band&, int) {});
}

inline Windows windows_of(const Conv& conv) {
  return {conv.h,  conv.w,  conv.channels, conv.oh, conv.ow, conv.outputs, conv.kh,
          conv.kw, conv.sy, conv.sx,       conv.py, conv.px, conv.oh,      conv.ow};
}

// Copies the weights of a convolution from its kernel.
inline CopyWeights weights_of(const Conv& conv, const float* kernel) {
  return [&conv, kernel](int64_t r, int64_t s, int64_t c, int64_t o, int64_t count, float* to) {
    std::copy_n(kernel + ((r * conv.kw + s) * conv.channels + c) * conv.outputs + o, count, to);
  };
}

// What to add to the sums of every output, since skipped products of weights that are not finite would not show; mostly nothing.
inline std::vector<float> not_finite(const Conv& conv, const float* kernel) {
  std::vector<float> skipped(conv.outputs);
  for (int64_t i = 0; i < conv.kh * conv.kw * conv.channels; ++i)
    for (int64_t o = 0; o < conv.outputs; ++o) skipped[o] += 0 * kernel[i * conv.outputs + o];
  if (std::all_of(skipped.begin(), skipped.end(), [](float x) { return x == 0; })) skipped.clear();
  return skipped;
}

inline void add_everywhere(const std::vector<float>& skipped, int64_t positions, float* sums) {
  if (skipped.empty()) return;
  for (int64_t i = 0; i < positions; ++i)
    for (size_t o = 0; o < skipped.size(); ++o) sums[i * skipped.size() + o] += skipped[o];
}

inline void conv_sums(const Pool& pool, const Conv& conv, const Maps& maps, const float* kernel, float* sums) {
  if (conv.channels == 0) std::fill_n(sums, conv.images * conv.oh * conv.ow * conv.outputs, 0.0f);
  correlate(pool, windows_of(conv), conv.images, maps, false, weights_of(conv, kernel), sums);
  add_everywhere(not_finite(conv, kernel), conv.images * conv.oh * conv.ow, sums);
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
      correlate(pool, at, conv.images, {cotangent}, true,
                [&](int64_t r, int64_t s, int64_t o, int64_t c, int64_t count, float* to) {
                  const float* from = kernel + ((y.tap_of(r) * conv.kw + x.tap_of(s)) * conv.channels + c) * conv.outputs + o;
                  for (int64_t k = 0; k < count; ++k) to[k] = from[k * conv.outputs];
                },
                grad);
    }
}

}  // namespace qpsnn
