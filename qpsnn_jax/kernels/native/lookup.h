// Sums over windows of spikes with small integers, looked up: the bits of four inputs at a position select one of the 16 sums
// of their four weights. One instruction looks up 32 or 64 positions. Exact, and as fast at every firing rate.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bytes.h"
#include "fours.h"
#include "lists.h"
#include "packed.h"
#include "tables.h"
#include "windows.h"

namespace qpsnn {

#if defined(QPSNN_LOOKUP)

// The work on some images at once, for one block of inputs and all blocks of outputs. The positions of their sums, with the zeros
// around maps, are numbered by group of 2^shift_ images, row, column and image of the group; vectors of these are looked up.
class Lookup {
 public:
  explicit Lookup(const Windows& windows)
      : at_(windows), down_(std::min(at_.kh, at_.sy)), right_(std::min(at_.kw, at_.sx)) {
    width_ = at_.columns - 1 + ceil_div(at_.kw, at_.sx);
    width_ -= shared(at_.sx, at_.px, width_ - at_.px - at_.w, at_.kw);
  }

  // Rows [begin, end) of the sums of some images, if all inputs are 0 and 1 and this is the fastest way; returns whether.
  bool add(const Part& part, int64_t images, int64_t begin, int64_t end) {
    for (const Weights& weights : part.weights)
      if (weights.tables.sums.empty()) return false;
    groups_ = ceil_div(part.count, kFour);
    height_ = end - begin - 1 + ceil_div(at_.kh, at_.sy);
    images_ = images, rows_ = end - begin;
    const int64_t common = shared(at_.sy, at_.py - begin, height_ + begin - at_.py - at_.h, at_.kh);
    pitch_ = height_ - common;
    const int64_t vectors = arrange();
    size_ = (ceil_div(images, together()) * pitch_ + common) * line();
    const double each = cycles(part, vectors, images * rows_ * at_.columns);
    const auto is_faster_than = [&](const auto& cycles_of) {
      double others = 0;
      for (const Weights& weights : part.weights) others += cycles_of(weights);
      return each < others;
    };
    if (!is_faster_than([&](const Weights& weights) { return dense_cycles(at_, part.count, weights); })) return false;
    int64_t found = 0;
    resize({images, begin, end, groups_});
    for (int64_t k = 0; k < images; k += together()) {
      const int64_t some = pack(part, k, begin);
      if (some < 0) return false;
      found += some;
    }
    const auto [top, bottom] = at_.rows_read(begin, end);
    const int64_t total = images * (bottom - top) * at_.w * part.count;
    const double rate = total ? static_cast<double>(found) / total : 0;
    if (!is_faster_than([&](const Weights& weights) { return list_cycles(at_, part.count, weights, rate, 0.5); })) return false;
    for (size_t block = 0; block < part.weights.size(); ++block) {
      const int64_t offset = block * kBlockVectors * kLanes;
      for (int64_t first = 0; first < vectors; first += kMostVectors) {
        const int64_t some = std::min(kMostVectors, vectors - first);
        look_up(part.weights[block], std::min(part.weights[block].stride, at_.outputs - offset), &starts_[first], some);
        write(&starts_[first], some, begin, at_.outputs - offset, part.first > 0, part.out + offset);
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kPositions = 4 * kLanes, kMostVectors = 4;
  static constexpr int kMostShift = 3;  // 8 images

  // How many zeros behind a map, or a row, are also those before the next one, where the stride is 1.
  static int64_t shared(int64_t stride, int64_t before, int64_t behind, int64_t taps) {
    return stride == 1 ? std::clamp<int64_t>(behind, 0, std::clamp<int64_t>(before, 0, taps - 1)) : 0;
  }

  int64_t together() const { return int64_t{1} << shift_; }
  int64_t line() const { return width_ << shift_; }  // positions of a row with its zeros

  // Chooses how many images are a group, and whether vectors begin with each row, which leaves out the zeros between rows, or
  // follow each other. Returns the number of vectors. A group is filled up by fewer images than there are, since packed
  // spikes are read that far beyond the last one: it is larger only where that saves vectors.
  int64_t arrange() {
    shift_ = 0, by_row_ = false;
    int64_t fewest = ceil_div(((images_ - 1) * pitch_ + rows_) * width_, kPositions);
    for (int shift = 0; shift <= kMostShift; ++shift) {
      const int64_t vectors = ceil_div(images_, int64_t{1} << shift) * rows_ * ceil_div(at_.columns << shift, kPositions);
      if (vectors < fewest) fewest = vectors, shift_ = shift, by_row_ = true;
    }
    return fewest;
  }

  // Of one of `sums` positions, as list_cycles() counts, where `vectors` of them are looked up.
  double cycles(const Part& part, int64_t vectors, double sums) const {
    double found = 1000 / sums + 4.0 * groups_ * down_ * right_;
    for (const Weights& weights : part.weights) {
      const double lookups = static_cast<double>(at_.kh * at_.kw * groups_);
      const double each = 0.4 + 2.5 * weights.tables.ends.size() / lookups;
      found += weights.stride * (lookups * each * vectors / sums + 0.5);
    }
    return found;
  }

  // For the maps of the inputs that the sums read, four inputs as the bits of a byte, with zeros around them: by phase of the
  // strides, of those that a tap reads, and four inputs. Maps of the same `layout` are written over, and the zeros stay.
  void resize(const std::array<int64_t, 4>& layout) {
    if (layout == layout_) return;
    layout_ = layout;
    places_.clear();
    for (int64_t r = 0; r < at_.kh; ++r)
      for (int64_t s = 0; s < at_.kw; ++s)
        for (int64_t group = 0; group < groups_; ++group)
          places_.push_back(place(r, at_.sy, right_, line()) + place(s, at_.sx, 1, together()) + group * size_);
    left_ = std::max<int64_t>(0, -at_.px), columns_ = std::max<int64_t>(0, std::min(at_.w, width_ * at_.sx - at_.px) - left_);
    phases_.clear();
    for (int64_t x = 0; x < std::min(at_.sx, columns_); ++x)
      if ((left_ + x + at_.px) % at_.sx < right_) phases_.push_back({x, place(left_ + x + at_.px, at_.sx, 1, together())});
    for (int64_t k = 0; k < kEight; ++k)
      eights_[k] = (k >> shift_) * at_.step_x * at_.outputs + (k & (together() - 1)) * at_.out_size();
    starts_.clear();
    const auto add_starts = [&](int64_t first, int64_t count) {
      for (int64_t done = 0; done < count; done += kPositions)
        starts_.push_back({first + done, std::min(kPositions, count - done)});
    };
    if (!by_row_) add_starts(0, ((images_ - 1) * pitch_ + rows_) * width_);
    for (int64_t k = 0; by_row_ && k < ceil_div(images_, together()); ++k)
      for (int64_t i = 0; i < rows_; ++i) add_starts((k * pitch_ + i) * line(), at_.columns << shift_);
    // The last vector of positions, at the last tap, reads beyond the last map.
    maps_.assign(down_ * right_ * groups_ * size_ + at_.kw * together() + kPositions, 0);
  }

  // Where the byte of a pixel is, by its row or column beyond the padding.
  int64_t place(int64_t k, int64_t stride, int64_t maps, int64_t step) const {
    return k % stride * maps * groups_ * size_ + k / stride * step;
  }

  // Fills in the maps of a group of images, from image `k` on, for the sums from row `begin` on; returns how many inputs are 1,
  // or -1 if others are not 0.
  int64_t pack(const Part& part, int64_t k, int64_t begin) {
    const int64_t top = begin * at_.sy - at_.py, images = std::min(images_ - k, together());
    const bool given = part.spikes != nullptr;
    const int64_t bytes = ceil_div(part.count, kByte), pixel = given ? part.spikes->pixel_bytes() : bytes;
    const bool whole = pixel == bytes;
    const int64_t step = given ? part.spikes->image_bytes() : columns_ * pixel;
    int64_t found = 0;
    for (int64_t y = std::max<int64_t>(0, top); y < std::min(at_.h, top + height_ * at_.sy); ++y) {
      if ((y - top) % at_.sy >= down_) continue;
      const int64_t first = y * at_.w + left_;
      const uint8_t* from = given ? part.spikes->bits(part.image + k) + first * pixel + part.first / kByte
                                  : packed_row(part, k, first, step);
      if (!from) return -1;
      for (int64_t image = 0; image < images; ++image)
        for (int64_t x = 0; x < (whole ? 1 : columns_); ++x)
          found += count_bits(from + image * step + x * pixel, whole ? columns_ * pixel : bytes);
      uint8_t* to = &maps_[(k >> shift_) * pitch_ * line() + place(y - top, at_.sy, right_, line())];
      for (const auto& [x, start] : phases_)
        with_constant<kMostShift + 1>(shift_ + 1, [&, x = x, start = start](auto above) {
          const Interleaved<above - 1> rows{from + x * pixel, at_.sx * pixel, step};
          divide_bytes(rows, ceil_div(columns_ - x, at_.sx) << shift_, groups_, to + start, size_);
        });
    }
    return found;
  }

  // The bits of a row of a group of images, `step` bytes apart, from pixel `first` on; null if some numbers are not 0 or 1.
  const uint8_t* packed_row(const Part& part, int64_t k, int64_t first, int64_t step) {
    const int64_t images = std::min(images_ - k, together()), pixel = ceil_div(part.count, kByte);
    bits_.resize(together() * step + kReadMore);
    for (int64_t image = 0; image < images; ++image) {
      const float* row = part.in + (k + image) * at_.in_size() + first * at_.inputs + part.first;
      uint8_t* to = &bits_[image * step];
      // The inputs of a row follow each other if they are whole bytes.
      const bool whole = part.count == at_.inputs && part.count % kByte == 0;
      bool binary = !whole || pack_bits(row, columns_ * part.count, to);
      for (int64_t x = 0; x < columns_ && binary && !whole; ++x)
        binary = pack_bits(row + x * at_.inputs, part.count, to + x * pixel);
      if (!binary) return nullptr;
    }
    return bits_.data();
  }

  // Some positions that follow each other.
  struct Start {
    int64_t first, count;
  };

  // Fills sums_ for some vectors of positions.
  void look_up(const Weights& weights, int64_t outputs, const Start* starts, int64_t vectors) {
    row_ = vectors * kPositions;
    sums_.resize(ceil_div(outputs, kLanes) * kLanes * row_ + kEight);  // the last positions are read with those behind them
    with_constant<kMostVectors>(vectors, [&](auto constant) {
      for (int64_t o = 0; o < outputs; o += 2) look_up_pair<constant>(weights, o, starts, &sums_[o * row_]);
    });
  }

  // Two outputs.
  template <int V>
  void look_up_pair(const Weights& weights, int64_t o, const Start* starts, int16_t* to) {
    const int8_t* tables = weights.tables.sums.data() + o * places_.size() * kEntries;
    const uint8_t* maps[V];
    for (int v = 0; v < V; ++v) maps[v] = maps_.data() + starts[v].first;
    int64_t begin = 0;
    for (const int64_t end : weights.tables.ends) {
      Bytes sums[2][V] = {};
      for (int64_t i = begin; i < end; ++i) {
        const int64_t place = places_[i];
        const Bytes one = table_at(tables + 2 * i * kEntries), two = table_at(tables + (2 * i + 1) * kEntries);
        for (int v = 0; v < V; ++v) {
          const Bytes fours = bytes_at(maps[v] + place);
          sums[0][v] += looked_up(one, fours);
          sums[1][v] += looked_up(two, fours);
        }
      }
      for (int v = 0; v < 2 * V; ++v) widen(sums[v / V][v % V], begin > 0, to + v * kPositions);
      begin = end;
    }
  }

  // Writes those of some vectors that are sums, row by row; `top` is the first row.
  void write(const Start* starts, int64_t vectors, int64_t top, int64_t outputs, bool add, float* out) const {
    const int64_t most = std::min(outputs, kBlockVectors * kLanes), sums = at_.columns << shift_;
    for (int64_t v = 0; v < vectors;) {
      const int64_t first = starts[v].first - v * kPositions;
      int64_t p = v * kPositions, end = p;
      // Whole vectors that follow each other are one.
      for (; v < vectors && end == v * kPositions && starts[v].first == first + end; ++v) end += starts[v].count;
      while (p < end) {
        const int64_t row = (first + p) / line(), i = row % pitch_, j = (first + p) % line();
        const int64_t run = std::min(end - p, line() - j), count = std::min(run, sums - j), image = row / pitch_ << shift_;
        if (i < rows_ && count > 0) {
          const int64_t images = std::min(images_ - image, together());
          float* to = at_.place(out + image * at_.out_size(), top + i, j >> shift_);
          add ? write_run<true>(p, count, most, images, to) : write_run<false>(p, count, most, images, to);
        }
        p += run;
      }
    }
  }

  // Transposes `count` positions of a row from p on, 8 of them and kLanes outputs at a time, for so many `images` of the group.
  template <bool Add>
  void write_run(int64_t p, int64_t count, int64_t outputs, int64_t images, float* to) const {
    const int64_t step = (kEight >> shift_) * at_.step_x * at_.outputs, mask = together() - 1;
    for (; count > 0; p += kEight, count -= kEight, to += step)
      for (int64_t o = 0; o < outputs; o += kLanes) {
        Eights sums[kEight];
        transpose(&sums_[o * row_ + p], row_, sums);
        const auto put = [&](int64_t k) {
          float* place = to + eights_[k] + o;
          Vector sum = floats(sums[k]);
          if (Add) sum += load_some(place, outputs - o);
          store_some(place, sum, outputs - o);
        };
        if (count >= kEight && images > mask)
          for (int64_t k = 0; k < kEight; ++k) put(k);
        else
          for (int64_t k = 0; k < std::min<int64_t>(kEight, count); ++k)
            if ((k & mask) < images) put(k);
      }
  }

  const Windows at_;
  const int64_t down_, right_;
  int64_t width_, left_ = 0, columns_ = 0, groups_ = 0, height_ = 0, pitch_ = 0, size_ = 0, row_ = 0, images_ = 0, rows_ = 0;
  int shift_ = 0;
  bool by_row_ = false;
  std::array<int64_t, 4> layout_{};
  std::vector<int64_t> places_;  // of the fours that a table takes, tap by tap, from that of a sum's position on
  std::vector<std::pair<int64_t, int64_t>> phases_;  // columns of a row that follow each other in a map: the first, and where
  std::vector<Start> starts_;  // of the vectors
  std::array<int64_t, kEight> eights_{};  // where the sums of 8 positions are, from those of the first one on
  AlignedVector<uint8_t> maps_, bits_;
  AlignedVector<int16_t> sums_;
};

#else

class Lookup {
 public:
  explicit Lookup(const Windows&) {}
  bool add(const Part&, int64_t, int64_t, int64_t) { return false; }
};

#endif

}  // namespace qpsnn
