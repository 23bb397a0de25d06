// The gradient of a convolution w.r.t. its kernel: every input that is not 0 adds its multiple of rows of the cotangent.
//
// For one input channel the windows that see a position are neighbours, so their rows of the cotangent are contiguous:
// a few rows of vectors, whose sums over all positions of the channel, in several images if maps are small, stay in registers.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "add_rows.h"
#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "spike_bits.h"
#include "vectors.h"

namespace qpsnn {

// Some of all that there are, from the first on.
struct Range {
  int64_t first, count;
};

// Equal shares of `all`, about `wished` of them, whole multiples of `unit` but for the last.
struct Shares {
  const int64_t all, most, number;
  Shares(int64_t all, int64_t wished, int64_t unit)
      : all(all), most(std::min(all, ceil_div(ceil_div(all, wished), unit) * unit)), number(all ? ceil_div(all, most) : 1) {}
  Range operator[](int64_t i) const { return {i * most, std::min(most, all - i * most)}; }
};

// The work on a range of images for a range of channels and one of outputs.
class KernelGrad {
 public:
  KernelGrad(const Conv& conv, int64_t most_images, int64_t most_channels, int64_t most_outputs)
      : conv_(conv), channels_(most_channels), bits_(most_channels) {
    const auto down = phases_of(conv.kh, conv.sy), right = phases_of(conv.kw, conv.sx);
    top_ = down[0].count - 1, left_ = right[0].count - 1;
    rows_ = top_ + std::max(conv.oh, (conv.h - 1 + conv.py) / conv.sy + 1);
    columns_ = left_ + std::max(conv.ow, (conv.w - 1 + conv.px) / conv.sx + 1);
    // Whole vectors are read faster than what begins within one.
    pitch_ = most_outputs > kLanes ? ceil_div(most_outputs, kLanes) * kLanes : most_outputs;
    for (const Phase& y : down)
      for (const Phase& x : right)
        if (y.count * x.count > 0) {
          phases_.push_back({y, x, size_});
          size_ += channels_ * y.count * row_size(x.count);
        }
    // The rows of maps whose part of the cotangent stays in the first level of the cache; if these are whole maps, those
    // whose cotangent stays in the second, with lists that are not much larger.
    const int64_t row_bytes = columns_ * pitch_ * sizeof(float);
    const int64_t most = std::max<int64_t>(1, kBandBytes / row_bytes - top_) * conv.sy;
    band_ = ceil_div(conv.h, ceil_div(conv.h, most));
    bands_ = ceil_div(conv.h, band_);
    place();
    const int64_t lists = phases_.size() * channels_;
    capacity_ = ceil_div(conv.h, conv.sy) * ceil_div(conv.w, conv.sx);
    const int64_t bytes = std::max<int64_t>(rows_ * row_bytes, lists * capacity_ * sizeof(int32_t) / kEntryShare);
    group_ = bands_ > 1 ? 1 : std::clamp<int64_t>(kGroupBytes / bytes, 1, std::max<int64_t>(1, most_images));
    slab_.resize((group_ * rows_ + 1) * columns_ * pitch_ + 2 * kLanes);
    // An odd number of lines of the cache, since lists are written side by side.
    capacity_ = (ceil_div(group_ * capacity_ + kListedMore, kLine) | 1) * kLine;
    pixels_.resize(lists * capacity_);
    next_.resize(lists);
    bounds_.resize(lists * (bands_ + 1));
    bits_.resize(places_.size());
  }

  // How many sums there are. They lie by phase, channel and row of the window.
  int64_t size() const { return size_; }

  // The sums over some images, for some channels and outputs.
  void run(const float* maps, const float* cotangent, Range images, Range channels, Range outputs, float* sums) {
    std::fill_n(sums, size_, 0.0f);
    for (int64_t k = 0; k < images.count; k += group_) {
      const int64_t some = std::min(group_, images.count - k), image = images.first + k;
      const float* from = maps + image * conv_.h * conv_.w * conv_.channels + channels.first;
      spikes_ = true;
      if (!list(from, some, channels.count)) {
        spikes_ = false, values_.resize(pixels_.size());
        list(from, some, channels.count);
      }
      for (int64_t i = 0; i < some; ++i)
        copy(cotangent + (image + i) * conv_.oh * conv_.ow * conv_.outputs + outputs.first, i, outputs.count);
      for (int64_t band = 0; band < bands_; ++band) add(band, sums);
    }
  }

  // Copies sums to where they are in the kernel's gradient.
  void write(Range channels, Range outputs, const float* sums, float* result) const {
    for (const auto& [y, x, start] : phases_)
      for (int64_t c = 0; c < channels.count; ++c)
        for (int64_t i = 0; i < y.count; ++i)
          for (int64_t j = 0; j < x.count; ++j) {
            const int64_t tap = y.tap_of(i) * conv_.kw + x.tap_of(j);
            std::copy_n(sums + start + (c * y.count + i) * row_size(x.count) + j * pitch_, outputs.count,
                        result + (tap * conv_.channels + channels.first + c) * conv_.outputs + outputs.first);
          }
  }

 private:
  static constexpr int64_t kBandBytes = 32 << 10, kGroupBytes = 128 << 10, kEntryShare = 4;
  static constexpr int64_t kLine = 64 / sizeof(int32_t);

  int64_t row_size(int64_t taps) const { return ceil_div(taps * pitch_, kLanes) * kLanes; }

  // Orders the pixels by band and phase, each filled up to a multiple of kBits.
  void place() {
    order_.assign(conv_.h * conv_.w, -1);
    // The first position from `begin` on that is of a phase.
    const auto first = [](int64_t begin, int64_t padding, const Phase& of) {
      return begin + ((of.phase - begin - padding) % of.stride + of.stride) % of.stride;
    };
    for (int64_t band = 0; band < bands_; ++band)
      for (const auto& [down, right, _] : phases_) {
        starts_.push_back(places_.size());
        for (int64_t y = first(band * band_, conv_.py, down); y < std::min(conv_.h, (band + 1) * band_); y += conv_.sy)
          for (int64_t x = first(0, conv_.px, right); x < conv_.w; x += conv_.sx) {
            const int64_t row = (y + conv_.py) / conv_.sy - (down.count - 1) + top_;
            order_[y * conv_.w + x] = static_cast<int32_t>(places_.size());
            places_.push_back(static_cast<int32_t>(row * columns_ + (x + conv_.px) / conv_.sx - (right.count - 1) + left_));
          }
        places_.resize(ceil_div(places_.size(), kBits) * kBits);
      }
    starts_.push_back(places_.size());
  }

  // Sorts the inputs of a group of images that are not 0 by phase and channel, in raster order, without their values if they
  // are `spikes_`; returns whether they are so.
  bool list(const float* maps, int64_t images, int64_t channels) {
    for (size_t i = 0; i < next_.size(); ++i) next_[i] = &pixels_[i * capacity_];
    for (int64_t k = 0; k < images; ++k, maps += conv_.h * conv_.w * conv_.channels)
      for (int64_t band = 0; band < bands_; ++band) {
        if (k == 0) mark(band);
        if (!spikes_)
          list_values(maps, k, band, channels);
        else if (!list_spikes(maps, k, band, channels))
          return false;
      }
    mark(bands_);
    return true;
  }

  bool list_spikes(const float* maps, int64_t k, int64_t band, int64_t channels) {
    for (int64_t i = band * band_ * conv_.w; i < std::min(conv_.h, (band + 1) * band_) * conv_.w; ++i)
      if (order_[i] >= 0 && !bits_.set(order_[i], maps + i * conv_.channels, channels)) return false;
    for (size_t phase = 0; phase < phases_.size(); ++phase) {
      const int64_t* start = &starts_[band * phases_.size() + phase];
      bits_.list(start[0], start[1], places_.data(), static_cast<int32_t>(k * rows_ * columns_), &next_[phase * channels_]);
    }
    return true;
  }

  void list_values(const float* maps, int64_t k, int64_t band, int64_t channels) {
    const auto begin = starts_.begin() + band * phases_.size();
    for (int64_t i = band * band_ * conv_.w; i < std::min(conv_.h, (band + 1) * band_) * conv_.w; ++i)
      if (order_[i] >= 0) {
        const int64_t phase = std::upper_bound(begin, begin + phases_.size(), order_[i]) - begin - 1;
        const int32_t pixel = places_[order_[i]] + static_cast<int32_t>(k * rows_ * columns_);
        for (int64_t c = 0; c < channels; ++c) {
          int32_t*& to = next_[phase * channels_ + c];
          const float x = maps[i * conv_.channels + c];
          *to = pixel, values_[to - pixels_.data()] = x;
          to += x != 0;
        }
      }
  }

  void mark(int64_t band) { std::copy(next_.begin(), next_.end(), &bounds_[band * next_.size()]); }

  // The cotangent of image `k` of a group with zeros around it; those are there already.
  void copy(const float* cotangent, int64_t k, int64_t count) {
    for (int64_t y = 0; y < conv_.oh; ++y) {
      const float* from = cotangent + y * conv_.ow * conv_.outputs;
      float* to = &slab_[((k * rows_ + y + top_) * columns_ + left_) * pitch_];
      if (pitch_ == conv_.outputs) {
        std::copy_n(from, conv_.ow * pitch_, to);
        continue;
      }
      for (int64_t x = 0; x < conv_.ow; ++x)  // zeros beyond `count`
        for (int64_t o = 0; o < pitch_; o += kLanes)
          store_some(to + x * pitch_ + o, load_some(from + x * conv_.outputs + o, count - o), pitch_ - o);
    }
  }

  void add(int64_t band, float* sums) const {
    static constexpr float kOne = 1;
    for (size_t phase = 0; phase < phases_.size(); ++phase) {
      const auto& [y, x, start] = phases_[phase];
      const int64_t row = row_size(x.count);
      for (int64_t c = 0; c < channels_; ++c) {
        const int64_t i = band * next_.size() + phase * channels_ + c;
        const int32_t *begin = bounds_[i], *end = bounds_[i + next_.size()];
        const Entries entries{begin, end, spikes_ ? &kOne : &values_[begin - pixels_.data()], !spikes_};
        if (begin < end)
          add_entries(entries, slab_.data(), pitch_, columns_ * pitch_, sums + start + c * y.count * row, row, y.count,
                      row / kLanes);
      }
    }
  }

  const Conv conv_;
  const int64_t channels_;
  std::vector<ReadPhase> phases_;
  int64_t top_, left_, rows_, columns_, pitch_, band_, bands_, group_, capacity_, size_ = 0;
  bool spikes_ = true;
  AlignedFloats slab_;
  AlignedVector<int32_t> order_, places_, pixels_;  // of pixels; of `order_`; the lists
  std::vector<int64_t> starts_;
  AlignedFloats values_;
  std::vector<int32_t*> next_, bounds_;
  SpikeBits bits_;
};

inline void kernel_grad(const Pool& pool, const Conv& conv, const float* maps, const float* cotangent, float* result) {
  const int64_t size = conv.kh * conv.kw * conv.channels * conv.outputs;
  if (size == 0) return;
  if (conv.h == 0 || conv.w == 0) return void(std::fill_n(result, size, 0.0f));
  // Parts of the images whatever the number of threads, so that sums are of the same order everywhere; few where their sums
  // take longer than their images. Parts of the channels for the rest of the threads.
  constexpr int64_t kMostOutputs = 64, kMostParts = 16, kFewImages = 16;
  const int64_t positions = conv.images * conv.oh * conv.ow;
  const Shares outputs(conv.outputs, ceil_div(conv.outputs, kMostOutputs), kLanes);
  const int64_t most_parts = std::min(ceil_div(kMostParts, outputs.number), std::max<int64_t>(1, conv.images));
  const Shares images(conv.images, std::clamp<int64_t>(positions / (kFewImages * conv.channels), 1, most_parts), 1);
  const Shares channels(conv.channels, ceil_div(2 * pool.threads, images.number * outputs.number), kLanes);
  std::vector<std::unique_ptr<KernelGrad>> workers(pool.threads);
  const auto worker_of = [&](int worker) -> KernelGrad& {
    if (!workers[worker]) workers[worker] = std::make_unique<KernelGrad>(conv, images.most, channels.most, outputs.most);
    return *workers[worker];
  };
  const int64_t blocks = channels.number * outputs.number, length = worker_of(0).size(), all = blocks * length;
  const Unset<float> owner(images.number * all);
  float* sums = owner.data();
  parallel_for(pool, images.number * blocks, [&](int64_t item, int worker) {
    const int64_t block = item % blocks;
    worker_of(worker).run(maps, cotangent, images[item / blocks], channels[block / outputs.number],
                          outputs[block % outputs.number], &sums[item * length]);
  });
  constexpr int64_t kPiece = 4096;
  if (images.number > 1)
    parallel_for(pool, ceil_div(all, kPiece), [&](int64_t piece, int) {
      const int64_t start = piece * kPiece, end = std::min(start + kPiece, all);
      for (int64_t part = 1; part < images.number; ++part)
        for (int64_t i = start; i < end; ++i) sums[i] += sums[part * all + i];
    });
  parallel_for(pool, blocks, [&](int64_t block, int) {
    workers[0]->write(channels[block / outputs.number], outputs[block % outputs.number], &sums[block * length], result);
  });
}

}  // namespace qpsnn
