// Spikes as bits, those of eight channels in a byte, and those that are NaN likewise: a 16th of the memory of numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace qpsnn {

constexpr int64_t kByte = 8;  // bits

#if defined(__AVX2__)

// The bits of 32 numbers. `others` gets bits where a number is not 0 or 1: as integers, since threads may take the smallest
// floats for 0.
inline uint32_t bits_of_32(const float* from, __m256i& others) {
  const __m256i one = _mm256_set1_epi32(0x3f800000);
  __m256i ones[4];
  for (int k = 0; k < 4; ++k) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 8 * k));
    ones[k] = _mm256_cmpeq_epi32(bits, one);
    others = _mm256_or_si256(others, _mm256_andnot_si256(ones[k], bits));
  }
  const __m256i first = _mm256_packs_epi32(ones[0], ones[1]), last = _mm256_packs_epi32(ones[2], ones[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_movemask_epi8(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, last), order));
}

// The bits of `count` numbers, and zeros that fill up a byte; returns whether all numbers are 0 or 1.
inline bool pack_bits(const float* from, int64_t count, uint8_t* to) {
  constexpr int64_t kAtOnce = 32;
  __m256i others = _mm256_setzero_si256();
  for (; count >= kAtOnce; count -= kAtOnce, from += kAtOnce, to += sizeof(uint32_t)) {
    const uint32_t bits = bits_of_32(from, others);
    std::memcpy(to, &bits, sizeof bits);
  }
  if (count > 0) {
    float rest[kAtOnce] = {};
    std::copy_n(from, count, rest);
    const uint32_t bits = bits_of_32(rest, others);
    std::memcpy(to, &bits, ceil_div(count, kByte));
  }
  return _mm256_testz_si256(others, others);
}

#else

inline bool pack_bits(const float* from, int64_t count, uint8_t* to) {
  bool binary = true;
  for (int64_t i = 0; i < count; i += kByte) {
    int byte = 0;
    for (int64_t k = 0; k < std::min(kByte, count - i); ++k) {
      uint32_t bits;
      std::memcpy(&bits, from + i + k, sizeof bits);
      byte |= (bits == 0x3f800000) << k;
      binary &= bits == 0x3f800000 || bits == 0;
    }
    to[i / kByte] = static_cast<uint8_t>(byte);
  }
  return binary;
}

#endif

inline int64_t count_bits(const uint8_t* bytes, int64_t count) {
  int64_t found = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, bytes + i, sizeof eight);
    found += __builtin_popcountll(eight);
  }
  for (; i < count; ++i) found += __builtin_popcount(bytes[i]);
  return found;
}

// Images of spikes 0, 1 and NaN, pixels and channels, in one array: for every image and pixel the bits of the channels, which
// fill up a byte; the same of those that are NaN; for every image a byte, 1 if there are any; and bytes that may be read too.
class PackedSpikes {
 public:
  PackedSpikes(uint8_t* data, int64_t images, int64_t pixels, int64_t channels)
      : data_(data), images_(images), pixels_(pixels), channels_(channels), bytes_(ceil_div(channels, kByte)) {}

  static constexpr int64_t kMore = 8;
  static int64_t size(int64_t images, int64_t pixels, int64_t channels) {
    return images * (2 * pixels * ceil_div(channels, kByte) + 1) + kMore;
  }

  int64_t pixel_bytes() const { return bytes_; }
  int64_t image_bytes() const { return pixels_ * bytes_; }
  uint8_t* bits(int64_t image) const { return data_ + image * image_bytes(); }
  uint8_t* nans(int64_t image) const { return bits(images_ + image); }
  bool any_nan(int64_t image) const { return *flag(image); }

  // Before any are written.
  void clear() const { std::fill_n(flag(0), images_ + kMore, 0); }
  void set_nan(int64_t image) const { __atomic_store_n(flag(image), 1, __ATOMIC_RELAXED); }

  // Writes `count` pixels.
  void write(int64_t image, int64_t pixel, int64_t count, const float* from) const {
    uint8_t* of_nans = nans(image) + pixel * bytes_;
    std::fill_n(of_nans, count * bytes_, 0);
    if (pack(from, count, bits(image) + pixel * bytes_)) return;
    for (int64_t i = 0; i < count * channels_; ++i)
      if (std::isnan(from[i])) of_nans[byte_of(i)] |= bit_of(i);
    set_nan(image);
  }

  void read(int64_t image, int64_t pixel, int64_t count, float* to) const {
    const uint8_t* from = bits(image) + pixel * bytes_;
    const bool together = channels_ % kByte == 0;
    for (int64_t i = 0; i < (together ? 1 : count); ++i)
      unpack(from + i * bytes_, together ? count * channels_ : channels_, to + i * channels_);
    if (!any_nan(image)) return;
    const uint8_t* of_nans = nans(image) + pixel * bytes_;
    for (int64_t i = 0; i < count * channels_; ++i)
      if (of_nans[byte_of(i)] & bit_of(i)) to[i] = NAN;
  }

 private:
  // Of number i.
  int64_t byte_of(int64_t i) const { return i / channels_ * bytes_ + i % channels_ / kByte; }
  int bit_of(int64_t i) const { return 1 << i % channels_ % kByte; }

  uint8_t* flag(int64_t image) const { return bits(2 * images_) + image; }

  bool pack(const float* from, int64_t count, uint8_t* to) const {
    if (channels_ % kByte == 0) return pack_bits(from, count * channels_, to);
    bool binary = true;
    for (int64_t i = 0; i < count; ++i) binary &= pack_bits(from + i * channels_, channels_, to + i * bytes_);
    return binary;
  }

  static void unpack(const uint8_t* from, int64_t count, float* to) {
    int64_t c = 0;
#if defined(__AVX2__)
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), one = _mm256_set1_epi32(0x3f800000);
    for (; c + kByte <= count; c += kByte) {
      const __m256i bits = _mm256_and_si256(_mm256_set1_epi32(from[c / kByte]), lanes);
      const __m256i ones = _mm256_and_si256(_mm256_cmpeq_epi32(bits, lanes), one);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + c), ones);
    }
#endif
    for (; c < count; ++c) to[c] = static_cast<float>(from[c / kByte] >> c % kByte & 1);
  }

  uint8_t* data_;
  int64_t images_, pixels_, channels_, bytes_;
};

// Maps b h w c as numbers, or as spikes if these are given.
struct Maps {
  const float* floats;
  const PackedSpikes* spikes = nullptr;
};

}  // namespace qpsnn
