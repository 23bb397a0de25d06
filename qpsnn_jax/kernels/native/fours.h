// Spikes of four neighbouring inputs as the bits of a byte.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "bytes.h"

namespace qpsnn {

constexpr int kFour = 4;

#if defined(QPSNN_LOOKUP)

constexpr int64_t kPackedFours = 32;  // pack_fours() writes so many at a time

// The bits of 8 fours in 32 bits each, the even ones first. `others` gets bits where a number is not 0 or 1: as integers, since
// threads may take the smallest floats for 0.
inline __m256i bits_of_eight(const float* from, __m256i& others) {
  const __m256i one = _mm256_set1_epi32(0x3f800000);
  __m256i ones[4];
  for (int k = 0; k < 4; ++k) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 8 * k));
    ones[k] = _mm256_cmpeq_epi32(bits, one);
    others = _mm256_or_si256(others, _mm256_andnot_si256(ones[k], bits));
  }
  const __m256i first = _mm256_packs_epi32(ones[0], ones[1]), last = _mm256_packs_epi32(ones[2], ones[3]);
  const __m256i bytes = _mm256_and_si256(_mm256_packs_epi16(first, last), _mm256_set1_epi8(1));
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi32(0x08040201)), _mm256_set1_epi16(1));
}

// The fours of 128 numbers.
inline void pack_128(const float* from, uint8_t* to, __m256i& others) {
  __m256i eights[4];
  for (int k = 0; k < 4; ++k) {
    eights[k] = bits_of_eight(from + 32 * k, others);
    others = reinterpret_cast<__m256i>(held(reinterpret_cast<__m256>(others)));
  }
  const __m256i first = _mm256_packs_epi32(eights[0], eights[1]), last = _mm256_packs_epi32(eights[2], eights[3]);
  const __m256i all = _mm256_packus_epi16(first, last);  // the even ones, then the odd ones
  const __m128i even = _mm256_castsi256_si128(all), odd = _mm256_extracti128_si256(all, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi8(even, odd));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16), _mm_unpackhi_epi8(even, odd));
}

// The fours of `count` numbers, and then up to kPackedFours - 1 bytes; returns whether all numbers are 0 or 1.
inline bool pack_fours(const float* from, int64_t count, uint8_t* to) {
  constexpr int64_t kAtOnce = kFour * kPackedFours;
  __m256i others = _mm256_setzero_si256();
  for (; count >= kAtOnce; count -= kAtOnce, from += kAtOnce, to += kPackedFours) pack_128(from, to, others);
  if (count > 0) {
    float rest[kAtOnce] = {};
    std::copy_n(from, count, rest);
    pack_128(rest, to, others);
  }
  return _mm256_testz_si256(others, others);
}

// Rows of bytes, those of 2^Shift images in turns: `step` apart in an image, images `image_step` apart.
template <int Shift>
struct Interleaved {
  const uint8_t* from;
  int64_t step, image_step;
  const uint8_t* row(int64_t i) const { return from + (i >> Shift) * step + (i & ((1 << Shift) - 1)) * image_step; }
};

// to[j * row + i] = from.row(i)[j] for `count` i and `width` j.
template <class Rows>
void transpose_bytes(const Rows& from, int64_t count, int64_t width, uint8_t* to, int64_t row) {
  constexpr int64_t kDown = 8, kAcross = 4;
  const __m128i by_column = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto four = [&](int64_t i, int64_t j) {
    int32_t rows[4];
    for (int k = 0; k < 4; ++k) std::memcpy(&rows[k], from.row(i + k) + j, sizeof rows[k]);
    return _mm_shuffle_epi8(_mm_setr_epi32(rows[0], rows[1], rows[2], rows[3]), by_column);
  };
  int64_t done = 0;
  for (; done + kAcross <= width; done += kAcross, to += kAcross * row) {
    int64_t i = 0;
    for (; i + kDown <= count; i += kDown) {
      const __m128i upper = four(i, done), lower = four(i + 4, done);
      const __m128i first = _mm_unpacklo_epi32(upper, lower), last = _mm_unpackhi_epi32(upper, lower);
      const __m128i columns[kAcross] = {first, _mm_unpackhi_epi64(first, first), last, _mm_unpackhi_epi64(last, last)};
      for (int64_t j = 0; j < kAcross; ++j) _mm_storel_epi64(reinterpret_cast<__m128i*>(to + j * row + i), columns[j]);
    }
    for (; i < count; ++i)
      for (int64_t j = 0; j < kAcross; ++j) to[j * row + i] = from.row(i)[done + j];
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < width - done; ++j) to[j * row + i] = from.row(i)[done + j];
}

inline int64_t count_bits(const uint8_t* fours, int64_t count) {
  int64_t found = 0, i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, fours + i, sizeof eight);
    found += __builtin_popcountll(eight);
  }
  for (; i < count; ++i) found += __builtin_popcount(fours[i]);
  return found;
}

#endif

}  // namespace qpsnn
