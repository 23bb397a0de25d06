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
#include "tables.h"
#include "windows.h"

namespace qpsnn {

#if defined(QPSNN_LOOKUP)

// The work on some images at once, for one block of inputs and all blocks of outputs.
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
    const int64_t common = shared(at_.sy, at_.py - begin, height_ + begin - at_.py - at_.h, at_.kh);
    pitch_ = height_ - common;
    size_ = (images * pitch_ + common) * width_;
    const int64_t positions = ((images - 1) * pitch_ + end - begin) * width_;
    const double each = cycles(part, positions, images * (end - begin) * at_.columns);
    const auto is_faster_than = [&](const auto& cycles_of) {
      double others = 0;
      for (const Weights& weights : part.weights) others += cycles_of(weights);
      return each < others;
    };
    if (!is_faster_than([&](const Weights& weights) { return dense_cycles(at_, part.count, weights); })) return false;
    int64_t found = 0;
    resize({images, begin, end, groups_});
    for (int64_t k = 0; k < images; ++k) {
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
      for (int64_t first = 0; first < positions; first += kMostVectors * kPositions) {
        const int64_t vectors = std::min(kMostVectors, ceil_div(positions - first, kPositions));
        look_up(part.weights[block], std::min(part.weights[block].stride, at_.outputs - offset), first, vectors);
        write(first, std::min(positions - first, vectors * kPositions), {begin, end}, at_.outputs - offset, part.first > 0,
              part.out + offset);
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kPositions = 4 * kLanes, kMostVectors = 4;

  // How many zeros behind a map, or a row, are also those before the next one, where the stride is 1.
  static int64_t shared(int64_t stride, int64_t before, int64_t behind, int64_t taps) {
    return stride == 1 ? std::clamp<int64_t>(behind, 0, std::clamp<int64_t>(before, 0, taps - 1)) : 0;
  }

  // Of one of `sums` positions, as list_cycles() counts, where `positions` are looked up.
  double cycles(const Part& part, int64_t positions, double sums) const {
    double found = 1000 / sums + 4.0 * groups_ * down_ * right_;
    for (const Weights& weights : part.weights) {
      const double lookups = static_cast<double>(at_.kh * at_.kw * groups_);
      const double each = 0.4 + 2.5 * weights.tables.ends.size() / lookups;
      found += weights.stride * (lookups * each * ceil_div(positions, kPositions) / sums + 0.5);
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
          places_.push_back(place(r, at_.sy, right_, width_) + place(s, at_.sx, 1, 1) + group * size_);
    left_ = std::max<int64_t>(0, -at_.px), columns_ = std::max<int64_t>(0, std::min(at_.w, width_ * at_.sx - at_.px) - left_);
    phases_.clear();
    for (int64_t x = 0; x < std::min(at_.sx, columns_); ++x)
      if ((left_ + x + at_.px) % at_.sx < right_) phases_.push_back({x, place(left_ + x + at_.px, at_.sx, 1, 1)});
    // The last vector of positions, at the last tap, reads beyond the last map.
    maps_.assign(down_ * right_ * groups_ * size_ + at_.kw + kMostVectors * kPositions, 0);
  }

  // Where the byte of a pixel is, by its row or column beyond the padding.
  int64_t place(int64_t k, int64_t stride, int64_t maps, int64_t step) const {
    return k % stride * maps * groups_ * size_ + k / stride * step;
  }

  // Fills in the map of image `k` for the sums from row `begin` on; returns how many inputs are 1, or -1 if others are not 0.
  int64_t pack(const Part& part, int64_t k, int64_t begin) {
    const int64_t top = begin * at_.sy - at_.py;
    // The inputs of a row follow each other if they are whole fours.
    const bool together = part.count == at_.inputs && part.count % kFour == 0;
    fours_.resize(columns_ * groups_ + kPackedFours);
    int64_t found = 0;
    for (int64_t y = std::max<int64_t>(0, top); y < std::min(at_.h, top + height_ * at_.sy); ++y) {
      if ((y - top) % at_.sy >= down_) continue;
      const float* row = part.in + k * at_.in_size() + (y * at_.w + left_) * at_.inputs + part.first;
      bool binary = true;
      if (together) binary = pack_fours(row, columns_ * part.count, fours_.data());
      for (int64_t x = 0; x < columns_ && binary && !together; ++x)
        binary = pack_fours(row + x * at_.inputs, part.count, &fours_[x * groups_]);
      if (!binary) return -1;
      found += count_bits(fours_.data(), columns_ * groups_);
      uint8_t* to = &maps_[k * pitch_ * width_ + place(y - top, at_.sy, right_, width_)];
      for (const auto& [x, start] : phases_)
        transpose_bytes(&fours_[x * groups_], at_.sx * groups_, ceil_div(columns_ - x, at_.sx), groups_, to + start, size_);
    }
    return found;
  }

  // Fills sums_ for `vectors` vectors of positions from `first` on.
  void look_up(const Weights& weights, int64_t outputs, int64_t first, int64_t vectors) {
    row_ = vectors * kPositions;
    sums_.resize(ceil_div(outputs, kLanes) * kLanes * row_ + kEight);  // the last positions are read with those behind them
    with_constant<kMostVectors>(vectors, [&](auto constant) {
      for (int64_t o = 0; o < outputs; o += 2) look_up_pair<constant>(weights, o, first, &sums_[o * row_]);
    });
  }

  // Two outputs.
  template <int V>
  void look_up_pair(const Weights& weights, int64_t o, int64_t first, int16_t* to) {
    const int8_t* tables = &weights.tables.sums[o * places_.size() * kEntries];
    int64_t begin = 0;
    for (const int64_t end : weights.tables.ends) {
      Bytes sums[2][V] = {};
      for (int64_t i = begin; i < end; ++i) {
        const uint8_t* from = &maps_[places_[i] + first];
        const Bytes one = table_at(tables + 2 * i * kEntries), two = table_at(tables + (2 * i + 1) * kEntries);
        for (int v = 0; v < V; ++v) {
          const Bytes fours = places_at(from + v * kPositions);
          sums[0][v] += looked_up(one, fours);
          sums[1][v] += looked_up(two, fours);
        }
      }
      for (int v = 0; v < 2 * V; ++v) widen(sums[v / V][v % V], begin > 0, to + v * kPositions);
      begin = end;
    }
  }

  static Bytes places_at(const uint8_t* from) {
    Vector fours;
    std::memcpy(&fours, from, sizeof fours);
    return reinterpret_cast<Bytes>(held(fours));
  }

  static Bytes table_at(const int8_t* from) {
    return repeated(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  // Writes sums of bytes in 16 bits, or adds them to those that are there.
  static void widen(Bytes sums, bool add, int16_t* to) {
    write_shorts(lower(sums), add, to);
    write_shorts(upper(sums), add, to + kPositions / 2);
  }

  static void write_shorts(Shorts sums, bool add, int16_t* to) {
    Shorts before;
    std::memcpy(&before, to, sizeof before);
    sums = add ? sums + before : sums;
    std::memcpy(to, &sums, sizeof sums);
  }

  // Writes those of `count` positions from `first` on that are sums, row by row.
  void write(int64_t first, int64_t count, std::pair<int64_t, int64_t> rows, int64_t outputs, bool add, float* out) const {
    const int64_t most = std::min(outputs, kBlockVectors * kLanes);
    for (int64_t p = 0; p < count;) {
      const int64_t position = first + p, line = position / width_, j = position % width_, i = line % pitch_;
      const int64_t run = std::min(count - p, width_ - j), sums = std::min(run, at_.columns - j);
      if (i < rows.second - rows.first && sums > 0) {
        float* to = at_.place(out + line / pitch_ * at_.out_size(), rows.first + i, j);
        add ? write_run<true>(p, sums, most, to) : write_run<false>(p, sums, most, to);
      }
      p += run;
    }
  }

  // Transposes `count` positions of a row from p on, 8 of them and kLanes outputs at a time.
  template <bool Add>
  void write_run(int64_t p, int64_t count, int64_t outputs, float* to) const {
    const int64_t step = at_.step_x * at_.outputs;
    for (const int64_t end = p + count; p < end; p += kEight, to += kEight * step)
      for (int64_t o = 0; o < outputs; o += kLanes) {
        Eights sums[kEight];
        transpose(&sums_[o * row_ + p], row_, sums);
        for (int64_t k = 0; k < kEight && k < end - p; ++k) {
          Vector sum = floats(sums[k]);
          if (Add) sum += load_some(to + k * step + o, outputs - o);
          store_some(to + k * step + o, sum, outputs - o);
        }
      }
  }

  const Windows at_;
  const int64_t down_, right_;
  int64_t width_, left_ = 0, columns_ = 0, groups_ = 0, height_ = 0, pitch_ = 0, size_ = 0, row_ = 0;
  std::array<int64_t, 4> layout_{};
  std::vector<int64_t> places_;  // of the fours that a table takes, tap by tap, from that of a sum's position on
  std::vector<std::pair<int64_t, int64_t>> phases_;  // columns of a row that follow each other in a map: the first, and where
  AlignedVector<uint8_t> maps_, fours_;
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
