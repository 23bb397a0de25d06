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

// Finds the ends of Tables, from the weights of one table after another.
class Ends {
 public:
  explicit Ends(int64_t stride) : stride_(stride), low_(stride), high_(stride), least_(stride), most_(stride) {}

  // The weights of four inputs, `stride` floats apart, are those of table `place`.
  void add(const float* weights, int64_t place) {
    Whole fits = ~Whole{};
    for (int64_t o = 0; o < stride_; o += kLanes) {
      Vector negative = {}, positive = {};
      for (int64_t c = 0; c < kFour; ++c) {
        const Vector w = load(weights + c * stride_ + o), above = w > 0 ? w : all(0);
        positive += above, negative += w - above;
      }
      const Vector low = load(&low_[o]) + negative, high = load(&high_[o]) + positive;
      store(&least_[o], negative), store(&most_[o], positive), store(&low_[o], low), store(&high_[o], high);
      fits &= (low >= all(INT8_MIN)) & (high <= all(INT8_MAX));
    }
    for (int lane = 0; lane < kLanes; ++lane)
      if (!fits[lane]) {
        ends_.push_back(place), low_ = least_, high_ = most_;
        break;
      }
  }

  std::vector<int64_t> until(int64_t end) {
    ends_.push_back(end);
    return std::move(ends_);
  }

 private:
  const int64_t stride_;
  AlignedFloats low_, high_, least_, most_;  // by output: the sums since the last end, and those of one table
  std::vector<int64_t> ends_;
};

// Eight numbers as bytes.
inline __m128i bytes_of_eight(const float* from) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_loadu_ps(from));
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  return _mm_packs_epi16(shorts, shorts);
}

// The tables of 8 outputs, from the weights of four inputs, `stride` floats apart; to(output) says where.
template <class To>
void fill_tables(const float* weights, int64_t stride, const To& to) {
  __m128i sums[kEntries] = {}, pairs[8], fours[8];
  for (int64_t c = 0; c < kFour; ++c) {
    const __m128i w = bytes_of_eight(weights + c * stride);
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

// The largest magnitude of weights that are integers, infinity if some are not; row(tap, c, to) copies those of an input, up to
// `stride`. Fills in `tables` if it is given and the weights are small.
template <class Row>
float look_over(int64_t taps, int64_t count, int64_t stride, const Row& row, Tables* tables) {
  constexpr float kMost = 31;  // four of them fit into a byte
  const int64_t groups = ceil_div(count, kFour);
  AlignedFloats four(kFour * stride);
  Unset<int8_t> sums(tables ? stride * taps * groups * kEntries : 0);
  Ends ends(stride);
  float largest = 0;
  for (int64_t place = 0; place < taps * groups && largest < INFINITY; ++place) {
    const int64_t tap = place / groups, c = place % groups * kFour;
    for (int64_t k = 0; k < kFour; ++k)
      c + k < count ? row(tap, c + k, &four[k * stride]) : void(std::fill_n(&four[k * stride], stride, 0.0f));
    largest = std::max(largest, largest_integer(kFour * stride, four.data()));
    if (largest > kMost || largest * taps * count > INT16_MAX) tables = nullptr;
    if (!tables) continue;
    for (int64_t o = 0; o < stride; o += 8)
      fill_tables(&four[o], stride, [&](int64_t k) {  // by pairs of outputs
        return sums.data() + (((o + k) / 2 * taps * groups + place) * 2 + k % 2) * kEntries;
      });
    ends.add(four.data(), place);
  }
  if (tables && largest > 0) *tables = {std::move(sums), ends.until(taps * groups)};
  return largest;
}

#else

template <class Row>
float look_over(int64_t taps, int64_t count, int64_t stride, const Row& row, Tables*) {
  AlignedFloats weights(stride);
  float largest = 0;
  for (int64_t i = 0; i < taps * count && largest < INFINITY; ++i) {
    row(i / count, i % count, weights.data());
    largest = std::max(largest, largest_integer(stride, weights.data()));
  }
  return largest;
}

#endif

}  // namespace qpsnn
