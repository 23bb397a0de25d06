// Vectors of floats as wide as the processor's, by the compiler's own extension.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace qpsnn {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));

inline Vector all(float x) { return x - Vector{}; }

inline Vector load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// A vector that stays in a register; else compilers load it again at each use.
inline Vector held(Vector x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// A pointer of a register of its own; else compilers keep the distances of all that it is added to.
inline const float* held(const float* x) {
  asm("" : "+r"(x));
  return x;
}

inline void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

// The first `count` numbers, then zeros; none are read if it is not above 0.
inline Vector load_some(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector x = {};
  if (count <= 0) return x;
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps((1 << count) - 1, from));
#else
  std::memcpy(&x, from, count * sizeof(float));
  return x;
#endif
}

inline void store_some(float* to, Vector x, int64_t count) {
  if (count >= kLanes) return store(to, x);
  if (count <= 0) return;
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (1 << count) - 1, reinterpret_cast<__m512>(x));
#else
  std::memcpy(to, &x, count * sizeof(float));
#endif
}

#if defined(__AVX__)
// The lanes that are not 0, NaN among them, and those that are 1, as bits.
#if defined(__AVX512F__)
inline int set_lanes(Vector x) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_setzero_ps(), _CMP_NEQ_UQ);
}
inline int one_lanes(Vector x) {
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(1), _CMP_EQ_OQ);
}
#else
inline int set_lanes(Vector x) {
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(x), _mm256_setzero_ps(), _CMP_NEQ_UQ));
}
inline int one_lanes(Vector x) {
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(x), _mm256_set1_ps(1), _CMP_EQ_OQ));
}
#endif
#endif

// run(std::integral_constant<int, n>()) for n from 1 to Most; larger ones count as Most.
template <int Most, class Run>
void with_constant(int64_t n, const Run& run) {
  if constexpr (Most > 1)
    if (n < Most) return with_constant<Most - 1>(n, run);
  run(std::integral_constant<int, Most>());
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace qpsnn
