// Sums over windows of spikes with small integers, looked up: the bits of four inputs at a position select one of the 16 sums
// of their four weights. One instruction looks up 32 or 64 positions. Exact, and as fast at every firing rate.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bytes.h"
#include "lists.h"
#include "windows.h"

namespace qpsnn {

constexpr int kFour = 4, kEntries = 16;  // inputs of a table, and their sums

#if defined(QPSNN_LOOKUP)

// The tables of weights r s c o, `stride` floats apart for every r s c; none if some are not integers of few bits.
inline Tables tables_of(int64_t taps, int64_t count, const float* weights, int64_t stride) {
  constexpr float kMost = 31;  // four of them fit into a byte
  Vector most = {};
  Whole whole = ~Whole{};
  for (int64_t i = 0; i < taps * count * stride; i += kLanes) {
    const Vector w = load(weights + i), size = w < 0 ? -w : w, capped = size <= kMost ? size : all(0);
    whole &= __builtin_convertvector(__builtin_convertvector(capped, Whole), Vector) == size;  // false for NaN
    most = size > most ? size : most;
  }
  Tables found;
  float largest = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!whole[lane]) return found;
    largest = std::max(largest, most[lane]);
  }
  const int64_t groups = ceil_div(count, kFour);
  if (largest == 0 || largest * taps * count > INT16_MAX) return found;
  found.most = static_cast<int>(largest);
  found.sums.resize(stride * taps * groups * kEntries);
  const __m128i bits[kFour] = {_mm_set1_epi16(-256), _mm_set1_epi32(-65536), _mm_set1_epi64x(-(int64_t{1} << 32)),
                               _mm_set_epi64x(-1, 0)};  // bytes whose number has the bit
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t o = 0; o < stride; ++o) {
        __m128i sums = _mm_setzero_si128();
        for (int64_t c = group * kFour; c < std::min(count, group * kFour + kFour); ++c) {
          const __m128i w = _mm_set1_epi8(static_cast<char>(weights[(tap * count + c) * stride + o]));
          sums = _mm_add_epi8(sums, _mm_and_si128(w, bits[c % kFour]));
        }
        // By pairs of outputs.
        const int64_t place = ((o / 2 * taps + tap) * groups + group) * 2 + o % 2;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(&found.sums[place * kEntries]), sums);
      }
  return found;
}

// The work on some images at once, for one block of inputs and all blocks of outputs.
class Lookup {
 public:
  explicit Lookup(const Windows& windows)
      : at_(windows), width_(at_.columns - 1 + ceil_div(at_.kw, at_.sx)), down_(std::min(at_.kh, at_.sy)),
        right_(std::min(at_.kw, at_.sx)) {}

  // Rows [begin, end) of the sums of some images, if all inputs are 0 and 1 and this is the fastest way; returns whether.
  bool add(const Part& part, int64_t images, int64_t begin, int64_t end) {
    for (const Weights& weights : part.weights)
      if (weights.tables.most == 0) return false;
    groups_ = ceil_div(part.count, kFour);
    // Of stride 1, the zeros below a map are those above the next one.
    height_ = end - begin - 1 + ceil_div(at_.kh, at_.sy);
    const int64_t above = std::max<int64_t>(0, at_.py - begin), below = height_ + begin - at_.py - at_.h;
    const int64_t shared = at_.sy == 1 ? std::clamp<int64_t>(below, 0, std::min(above, at_.kh - 1)) : 0;
    pitch_ = height_ - shared;
    size_ = (images * pitch_ + shared) * width_;
    const int64_t positions = ((images - 1) * pitch_ + end - begin) * width_;
    const double each = cycles(part, positions, images * (end - begin) * at_.columns);
    const auto is_faster_than = [&](const auto& cycles_of) {
      double others = 0;
      for (const Weights& weights : part.weights) others += cycles_of(weights);
      return each < others;
    };
    if (!is_faster_than([&](const Weights& weights) { return dense_cycles(at_, part.count, weights); })) return false;
    int64_t found = 0;
    resize();
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

  // Of one of `sums` positions, as list_cycles() counts, where `positions` are looked up.
  double cycles(const Part& part, int64_t positions, double sums) const {
    double found = 1000 / sums + 4.0 * groups_ * down_ * right_;
    for (const Weights& weights : part.weights) {
      const double each = 0.4 + 2.5 / chunk(weights), lookups = static_cast<double>(at_.kh * at_.kw * groups_);
      found += weights.stride * (lookups * each * ceil_div(positions, kPositions) / sums + 0.5);
    }
    return found;
  }

  // Sums of as many tables fit into a byte.
  static int64_t chunk(const Weights& weights) { return INT8_MAX / (kFour * weights.tables.most); }

  // For the maps of the inputs that the sums read, four inputs as the bits of a byte, with zeros around them: by phase of the
  // strides, of those that a tap reads, and four inputs.
  void resize() {
    taps_.clear();
    for (int64_t r = 0; r < at_.kh; ++r)
      for (int64_t s = 0; s < at_.kw; ++s) taps_.push_back(place(r, at_.sy, right_, width_) + place(s, at_.sx, 1, 1));
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
    const int64_t left = std::max<int64_t>(0, -at_.px), right = std::min(at_.w, width_ * at_.sx - at_.px);
    columns_.clear();
    for (int64_t x = left; x < right; ++x)
      columns_.push_back((x + at_.px) % at_.sx < right_ ? place(x + at_.px, at_.sx, 1, 1) : -1);
    int64_t found = 0;
    for (int64_t y = std::max<int64_t>(0, top); y < std::min(at_.h, top + height_ * at_.sy); ++y) {
      if ((y - top) % at_.sy >= down_) continue;
      const float* row = part.in + k * at_.in_size() + y * at_.w * at_.inputs + part.first;
      uint8_t* to = &maps_[k * pitch_ * width_ + place(y - top, at_.sy, right_, width_)];
      for (int64_t x = left; x < right; ++x) {
        if (columns_[x - left] < 0) continue;
        const int some = pack_pixel(row + x * at_.inputs, part.count, to + columns_[x - left]);
        if (some < 0) return -1;
        found += some;
      }
    }
    return found;
  }

  int pack_pixel(const float* from, int64_t count, uint8_t* to) const {
    int found = 0;
    for (int64_t c = 0; c < count; c += kLanes) {
      const Vector some = load_some(from + c, count - c);
      const int set = set_lanes(some);
      if (set != one_lanes(some)) return -1;
      for (int64_t k = 0; k < kLanes && k < count - c; k += kFour)
        to[(c + k) / kFour * size_] = static_cast<uint8_t>(set >> k & 15);
      found += __builtin_popcount(set);
    }
    return found;
  }

  // Fills sums_ for `vectors` vectors of positions from `first` on.
  void look_up(const Weights& weights, int64_t outputs, int64_t first, int64_t vectors) {
    row_ = vectors * kPositions;
    sums_.resize(ceil_div(outputs, kLanes) * kLanes * row_);
    with_constant<kMostVectors>(vectors, [&](auto constant) {
      for (int64_t o = 0; o < outputs; o += 2) look_up_pair<constant>(weights, o, first, &sums_[o * row_]);
    });
  }

  // Two outputs.
  template <int V>
  void look_up_pair(const Weights& weights, int64_t o, int64_t first, int16_t* to) {
    const int64_t most = chunk(weights);
    const int8_t* table = &weights.tables.sums[o * taps_.size() * groups_ * kEntries];
    Bytes sums[2][V] = {};
    Shorts whole[2][V][2] = {};
    int64_t left = most;
    for (const int64_t tap : taps_) {
      const uint8_t* from = &maps_[tap + first];
      for (int64_t group = 0; group < groups_; ++group, from += size_, table += 2 * kEntries) {
        const Bytes one = table_at(table), two = table_at(table + kEntries);
        for (int v = 0; v < V; ++v) {
          Bytes fours;
          std::memcpy(&fours, from + v * kPositions, sizeof fours);
          sums[0][v] += looked_up(one, fours);
          sums[1][v] += looked_up(two, fours);
        }
        if (--left == 0) widen(sums, whole), left = most;
      }
    }
    widen(sums, whole);
    std::memcpy(to, whole, sizeof whole);
  }

  static Bytes table_at(const int8_t* from) {
    return repeated(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }

  // Adds sums of bytes to those of 16 bits, and makes them 0.
  template <int V>
  static void widen(Bytes (&sums)[2][V], Shorts (&whole)[2][V][2]) {
    for (int pair = 0; pair < 2; ++pair)
      for (int v = 0; v < V; ++v) {
        whole[pair][v][0] += lower(sums[pair][v]);
        whole[pair][v][1] += upper(sums[pair][v]);
        sums[pair][v] = Bytes{};
      }
  }

  // Transposes sums_, 8 positions and kLanes outputs at a time, and writes those positions that are sums.
  void write(int64_t first, int64_t count, std::pair<int64_t, int64_t> rows, int64_t outputs, bool add, float* out) const {
    out += first / width_ / pitch_ * at_.out_size();
    int64_t i = rows.first + first / width_ % pitch_, j = first % width_;
    for (int64_t p = 0; p < count; p += kEight) {
      float* to[kEight];
      for (int64_t k = 0; k < kEight; ++k) {
        to[k] = p + k < count && i < rows.second && j < at_.columns ? at_.place(out, i, j) : nullptr;
        if (++j == width_) ++i, j = 0;
        if (i == rows.first + pitch_) i = rows.first, out += at_.out_size();
      }
      for (int64_t o = 0; o < outputs && o < kBlockVectors * kLanes; o += kLanes) {
        Eights sums[kEight];
        transpose(&sums_[o * row_ + p], row_, sums);
        for (int64_t k = 0; k < kEight; ++k) {
          if (!to[k]) continue;
          Vector sum = floats(sums[k]);
          if (add) sum += load_some(to[k] + o, outputs - o);
          store_some(to[k] + o, sum, outputs - o);
        }
      }
    }
  }

  const Windows at_;
  const int64_t width_, down_, right_;
  int64_t groups_ = 0, height_ = 0, pitch_ = 0, size_ = 0, row_ = 0;
  std::vector<int64_t> taps_, columns_;
  std::vector<uint8_t> maps_;
  std::vector<int16_t, Aligned<int16_t>> sums_;
};

#else

inline Tables tables_of(int64_t, int64_t, const float*, int64_t) { return {}; }

class Lookup {
 public:
  explicit Lookup(const Windows&) {}
  bool add(const Part&, int64_t, int64_t, int64_t) { return false; }
};

#endif

}  // namespace qpsnn
