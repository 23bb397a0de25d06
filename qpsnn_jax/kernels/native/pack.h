// The numbers of an array that are not 0, one after the other, without a branch for each.
#pragma once

#include <array>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace qpsnn {

// pack() may write so many numbers behind those that it found.
constexpr int64_t kPackedMore = 8;

#if defined(__AVX2__)
// For every set of 8 lanes, its members first.
inline const std::array<std::array<uint8_t, 8>, 256>& members() {
  static const auto table = [] {
    std::array<std::array<uint8_t, 8>, 256> found{};
    for (int set = 0; set < 256; ++set)
      for (int lane = 0, next = 0; lane < 8; ++lane)
        if (set >> lane & 1) found[set][next++] = static_cast<uint8_t>(lane);
    return found;
  }();
  return table;
}
#endif

// Writes the places `base` + i of the numbers x[i] that are not 0, and these; returns how many there are.
inline int64_t pack(const float* x, int64_t count, int32_t base, int32_t* places, float* values) {
  int64_t found = 0, i = 0;
#if defined(__AVX2__)
  const auto& table = members();
  for (; i + 8 <= count; i += 8) {
    const __m256 eight = _mm256_loadu_ps(x + i);
    const int set = _mm256_movemask_ps(_mm256_cmp_ps(eight, _mm256_setzero_ps(), _CMP_NEQ_UQ));  // NaN too
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(table[set].data()));
    const __m256i lanes = _mm256_cvtepu8_epi32(bytes), start = _mm256_set1_epi32(base + static_cast<int32_t>(i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(places + found), _mm256_add_epi32(lanes, start));
    _mm256_storeu_ps(values + found, _mm256_permutevar8x32_ps(eight, lanes));
    found += __builtin_popcount(set);
  }
#endif
  for (; i < count; ++i) {
    places[found] = base + static_cast<int32_t>(i);
    values[found] = x[i];
    found += x[i] != 0;
  }
  return found;
}

}  // namespace qpsnn
