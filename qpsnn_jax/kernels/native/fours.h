// Spikes of four neighbouring inputs as the bits of a byte.
#pragma once

#include <cstdint>
#include <cstring>

#include "bytes.h"

namespace qpsnn {

constexpr int kFour = 4;

#if defined(QPSNN_LOOKUP)

constexpr int64_t kReadMore = 3;  // bytes behind a row that divide_bytes() may read

// Rows of bytes, those of 2^Shift images in turns: `step` apart in an image, images `image_step` apart.
template <int Shift>
struct Interleaved {
  const uint8_t* from;
  int64_t step, image_step;
  const uint8_t* row(int64_t i) const { return from + (i >> Shift) * step + (i & ((1 << Shift) - 1)) * image_step; }
};

// to[j * step + i] are the four bits j of from.row(i), from the lowest on, for `count` i and `fours` j.
template <class Rows>
void divide_bytes(const Rows& from, int64_t count, int64_t fours, uint8_t* to, int64_t step) {
  constexpr int64_t kDown = 8, kAcross = 4;
  const __m128i by_column = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const auto four = [&](int64_t i, int64_t byte) {
    int32_t rows[4];
    for (int k = 0; k < 4; ++k) std::memcpy(&rows[k], from.row(i + k) + byte, sizeof rows[k]);
    return _mm_shuffle_epi8(_mm_setr_epi32(rows[0], rows[1], rows[2], rows[3]), by_column);
  };
  const auto write = [&](int64_t j, int64_t i, __m128i x) {
    if (j >= fours) return;
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + j * step + i), _mm_and_si128(x, _mm_set1_epi8(15)));
  };
  int64_t i = 0;
  for (; i + kDown <= count; i += kDown)
    for (int64_t byte = 0; 2 * byte < fours; byte += kAcross) {
      const __m128i upper = four(i, byte), lower = four(i + 4, byte);
      const __m128i first = _mm_unpacklo_epi32(upper, lower), last = _mm_unpackhi_epi32(upper, lower);
      const __m128i columns[kAcross] = {first, _mm_unpackhi_epi64(first, first), last, _mm_unpackhi_epi64(last, last)};
      for (int64_t k = 0; k < kAcross; ++k) {
        write(2 * (byte + k), i, columns[k]);
        write(2 * (byte + k) + 1, i, _mm_srli_epi16(columns[k], 4));
      }
    }
  for (; i < count; ++i)
    for (int64_t j = 0; j < fours; ++j) to[j * step + i] = from.row(i)[j / 2] >> j % 2 * 4 & 15;
}

#endif

}  // namespace qpsnn
