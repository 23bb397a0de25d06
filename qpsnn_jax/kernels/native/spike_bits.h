// The spikes of maps by channel: the bits of all channels at one pixel after another are turned into the bits of all pixels,
// 32 at a time, for one channel after another. This takes few instructions for a vector, not some for every spike.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "pack.h"
#include "vectors.h"

namespace qpsnn {

constexpr int64_t kBits = 32;  // pixels at a time
// list() may write so many places behind those that it found.
constexpr int64_t kListedMore = 16;

#if defined(__AVX2__)

// Appends places[i] + base for the bits i that are 1; returns the end.
inline int32_t* append(uint32_t bits, const int32_t* places, int32_t base, int32_t* to) {
#if defined(__AVX512F__)
  for (int part = 0; part < 2; ++part, bits >>= 16, places += 16) {
    const __m512i all = _mm512_add_epi32(_mm512_loadu_si512(places), _mm512_set1_epi32(base));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all));
    to += __builtin_popcount(bits & 0xffff);
  }
#else
  for (int part = 0; part < 4; ++part, bits >>= 8, places += 8) {
    const __m256i all = _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(places)), _mm256_set1_epi32(base));
    const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(members()[bits & 255].data()));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(all, _mm256_cvtepu8_epi32(first)));
    to += __builtin_popcount(bits & 255);
  }
#endif
  return to;
}

class SpikeBits {
 public:
  explicit SpikeBits(int64_t most_channels) : channels_(most_channels) {}

  // For so many pixels, a multiple of kBits.
  void resize(int64_t pixels) {
    pixels_ = pixels;
    bytes_.resize((ceil_div(channels_, kLanes) * kLanes / 8) * pixels);
  }

  // Whether the channels of a pixel are all 0 or 1, which are then kept.
  bool set(int64_t pixel, const float* x, int64_t channels) {
    uint8_t* to = &bytes_[pixel];
    for (int64_t c = 0; c < channels_; c += kLanes) {
      const Vector some = load_some(x + c, channels - c);
      const int set = set_lanes(some);
      if (set != one_lanes(some)) return false;
      for (int k = 0; k < kLanes; k += 8, to += pixels_) *to = static_cast<uint8_t>(set >> k);
    }
    return true;
  }

  // Appends places[pixel] + base for every spike of the pixels [begin, end), multiples of kBits, to next[channel].
  void list(int64_t begin, int64_t end, const int32_t* places, int32_t base, int32_t** next) const {
    for (int64_t c = 0; c < channels_; c += 8) {
      const uint8_t* from = bytes_.data() + c / 8 * pixels_;
      for (int64_t pixel = begin; pixel < end; pixel += kBits) {
        __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + pixel));
        if (_mm256_testz_si256(bytes, bytes)) continue;
        for (int k = 7; k >= 0; --k, bytes = _mm256_add_epi8(bytes, bytes)) {  // the highest bits first
          const uint32_t bits = static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
          if (bits) next[c + k] = append(bits, places + pixel, base, next[c + k]);
        }
      }
    }
  }

 private:
  const int64_t channels_;
  int64_t pixels_ = 0;
  AlignedVector<uint8_t> bytes_;
};

#else

class SpikeBits {
 public:
  explicit SpikeBits(int64_t) {}
  void resize(int64_t) {}
  bool set(int64_t, const float*, int64_t) { return false; }
  void list(int64_t, int64_t, const int32_t*, int32_t, int32_t**) const {}
};

#endif

}  // namespace qpsnn
