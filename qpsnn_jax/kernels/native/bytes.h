// Vectors of bytes as tables of 16, where the processor looks up each of their places at once: AVX2 and AVX-512.
#pragma once

#include "vectors.h"

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define QPSNN_LOOKUP 1

namespace qpsnn {

constexpr int kEight = 8;  // 16-bit integers of 128 bits

typedef int8_t Bytes __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(4 * kLanes)));
typedef __m128i Eights[kLanes / kEight];  // 16-bit integers, as many as floats of a vector

#if defined(__AVX512BW__)

// A table in every 16 bytes.
inline Bytes repeated(__m128i table) { return reinterpret_cast<Bytes>(_mm512_broadcast_i32x4(table)); }

// What tables have at some places.
inline Bytes looked_up(Bytes table, Bytes places) {
  return reinterpret_cast<Bytes>(_mm512_shuffle_epi8(reinterpret_cast<__m512i>(table), reinterpret_cast<__m512i>(places)));
}

// Half of the bytes in 16 bits each.
inline Shorts lower(Bytes x) {
  return reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm512_castsi512_si256(reinterpret_cast<__m512i>(x))));
}
inline Shorts upper(Bytes x) {
  return reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(reinterpret_cast<__m512i>(x), 1)));
}

inline Vector floats(const Eights& x) {
  return reinterpret_cast<Vector>(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_set_m128i(x[1], x[0]))));
}

#else  // the same in AVX2

inline Bytes repeated(__m128i table) { return reinterpret_cast<Bytes>(_mm256_broadcastsi128_si256(table)); }

inline Bytes looked_up(Bytes table, Bytes places) {
  return reinterpret_cast<Bytes>(_mm256_shuffle_epi8(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(places)));
}

inline Shorts lower(Bytes x) {
  return reinterpret_cast<Shorts>(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(reinterpret_cast<__m256i>(x))));
}
inline Shorts upper(Bytes x) {
  return reinterpret_cast<Shorts>(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(reinterpret_cast<__m256i>(x), 1)));
}

inline Vector floats(const Eights& x) {
  return reinterpret_cast<Vector>(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(x[0])));
}

#endif

// Loads bytes into a register.
inline Bytes bytes_at(const uint8_t* from) {
  Vector bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return reinterpret_cast<Bytes>(held(bytes));
}

// 16 bytes, repeated.
inline Bytes table_at(const int8_t* from) {
  return repeated(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline void write_shorts(Shorts sums, bool add, int16_t* to) {
  Shorts before;
  std::memcpy(&before, to, sizeof before);
  sums = add ? sums + before : sums;
  std::memcpy(to, &sums, sizeof sums);
}

// Writes bytes as 16 bits, or adds them to those that are there.
inline void widen(Bytes bytes, bool add, int16_t* to) {
  write_shorts(lower(bytes), add, to);
  write_shorts(upper(bytes), add, to + 2 * kLanes);
}

// to[k] is number k of kLanes rows of 16-bit integers, `row` apart.
inline void transpose(const int16_t* from, int64_t row, Eights (&to)[kEight]) {
  for (int part = 0; part < kLanes / kEight; ++part, from += kEight * row) {
    __m128i a[kEight], b[kEight];
    for (int k = 0; k < kEight; ++k) a[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k * row));
    for (int k = 0; k < 4; ++k) {
      b[2 * k] = _mm_unpacklo_epi16(a[2 * k], a[2 * k + 1]);
      b[2 * k + 1] = _mm_unpackhi_epi16(a[2 * k], a[2 * k + 1]);
    }
    for (int four = 0; four < kEight; four += 4)
      for (int k = 0; k < 2; ++k) {
        a[four + 2 * k] = _mm_unpacklo_epi32(b[four + k], b[four + 2 + k]);
        a[four + 2 * k + 1] = _mm_unpackhi_epi32(b[four + k], b[four + 2 + k]);
      }
    for (int k = 0; k < 4; ++k) {
      to[2 * k][part] = _mm_unpacklo_epi64(a[k], a[k + 4]);
      to[2 * k + 1][part] = _mm_unpackhi_epi64(a[k], a[k + 4]);
    }
  }
}

}  // namespace qpsnn

#endif
