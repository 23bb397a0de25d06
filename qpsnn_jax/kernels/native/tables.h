// Tables of the sums that four neighbouring weights can give.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "fours.h"
#include "windows.h"

namespace qpsnn {

constexpr int kEntries = 16;  // sums of the four inputs of a table

// The largest magnitude of numbers that are integers, infinity if some are not; `count` is a multiple of a vector.
inline float largest_integer(int64_t count, const float* numbers) {
  constexpr float kMost = 1 << 24;
  Vector most = {};
  Whole whole = ~Whole{};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vector x = load(numbers + i), size = x < 0 ? -x : x, capped = size <= kMost ? size : all(0);
    whole &= __builtin_convertvector(__builtin_convertvector(capped, Whole), Vector) == size;  // false for NaN
    most = size > most ? size : most;
  }
  float largest = 0;
  for (int lane = 0; lane < kLanes; ++lane) largest = whole[lane] ? std::max(largest, most[lane]) : INFINITY;
  return largest;
}

#if defined(QPSNN_LOOKUP)

// The ends of Tables, for weights r s c o.
inline std::vector<int64_t> ends_of(int64_t taps, int64_t count, const float* weights, int64_t stride) {
  std::vector<int64_t> ends;
  const int64_t groups = ceil_div(count, kFour);
  // By output, the least and the largest sums so far, and those of one table.
  AlignedFloats low(stride), high(stride), least(stride), most(stride);
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t group = 0; group < groups; ++group) {
      Whole fits = ~Whole{};
      for (int64_t o = 0; o < stride; o += kLanes) {
        Vector negative = {}, positive = {};
        for (int64_t c = group * kFour; c < std::min(count, group * kFour + kFour); ++c) {
          const Vector w = load(weights + (tap * count + c) * stride + o), above = w > 0 ? w : all(0);
          positive += above, negative += w - above;
        }
        store(&least[o], negative), store(&most[o], positive);
        fits &= load(&low[o]) + negative >= all(INT8_MIN) & load(&high[o]) + positive <= all(INT8_MAX);
      }
      bool all_fit = true;
      for (int lane = 0; lane < kLanes; ++lane) all_fit &= fits[lane] != 0;
      if (!all_fit) ends.push_back(tap * groups + group);
      for (int64_t o = 0; o < stride; ++o) low[o] = all_fit * low[o] + least[o], high[o] = all_fit * high[o] + most[o];
    }
  ends.push_back(taps * groups);
  return ends;
}

// Eight numbers as bytes.
inline __m128i bytes_of_eight(const float* from) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_loadu_ps(from));
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  return _mm_packs_epi16(shorts, shorts);
}

// The tables of 8 outputs, from the weights of up to 4 inputs, `stride` floats apart; to(output) says where.
template <class To>
void fill_tables(const float* weights, int64_t inputs, int64_t stride, const To& to) {
  __m128i sums[kEntries] = {}, pairs[8], fours[8];
  for (int64_t c = 0; c < kFour; ++c) {
    const __m128i w = c < inputs ? bytes_of_eight(weights + c * stride) : _mm_setzero_si128();
    for (int64_t k = 0; k < 1 << c; ++k) sums[(1 << c) + k] = _mm_add_epi8(sums[k], w);
  }
  // Transposed: all outputs of a sum, then all sums of an output.
  for (int k = 0; k < 8; ++k) pairs[k] = _mm_unpacklo_epi8(sums[2 * k], sums[2 * k + 1]);
  for (int k = 0; k < 4; ++k) {
    fours[k] = _mm_unpacklo_epi16(pairs[2 * k], pairs[2 * k + 1]);  // outputs 0 to 3
    fours[4 + k] = _mm_unpackhi_epi16(pairs[2 * k], pairs[2 * k + 1]);
  }
  const auto write = [&](int64_t output, __m128i low, __m128i high) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to(output)), _mm_unpacklo_epi64(low, high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to(output + 1)), _mm_unpackhi_epi64(low, high));
  };
  for (int half = 0; half < 2; ++half) {
    const __m128i* from = fours + 4 * half;
    write(4 * half, _mm_unpacklo_epi32(from[0], from[1]), _mm_unpacklo_epi32(from[2], from[3]));
    write(4 * half + 2, _mm_unpackhi_epi32(from[0], from[1]), _mm_unpackhi_epi32(from[2], from[3]));
  }
}

// The tables of weights r s c o, `stride` floats apart for every r s c, that are integers up to `largest`; none if these are
// not small.
inline Tables tables_of(int64_t taps, int64_t count, const float* weights, int64_t stride, float largest) {
  constexpr float kMost = 31;  // four of them fit into a byte
  Tables found;
  if (largest == 0 || largest > kMost || largest * taps * count > INT16_MAX) return found;
  const int64_t groups = ceil_div(count, kFour);
  found.sums.resize(stride * taps * groups * kEntries);
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t o = 0; o < stride; o += 8)
        fill_tables(weights + (tap * count + group * kFour) * stride + o, count - group * kFour, stride, [&](int64_t k) {
          const int64_t output = o + k, place = ((output / 2 * taps + tap) * groups + group) * 2 + output % 2;
          return &found.sums[place * kEntries];  // by pairs of outputs
        });
  found.ends = ends_of(taps, count, weights, stride);
  return found;
}

#else

inline Tables tables_of(int64_t, int64_t, const float*, int64_t, float) { return {}; }

#endif

}  // namespace qpsnn
