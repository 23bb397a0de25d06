// Sums over windows with weights of one or two bits, which are ±f or ±2f ± f. Of five inputs there are 16 sums with signs, the
// first of which is +. They fill a register, where one instruction looks up those of 16 outputs. An infinite input gives NaN,
// since 2f and f may have opposite signs; weights of 0 are no such sums, as numbers that cancel would leave their rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "windows.h"

namespace qpsnn {

#if defined(__AVX512F__)

constexpr int64_t kFive = 5;

inline __m512 native(Vector x) { return reinterpret_cast<__m512>(x); }
inline Vector size_of(Vector x) { return x < 0 ? -x : x; }
inline __mmask16 equal_lanes(Vector x, Vector y) { return _mm512_cmp_ps_mask(native(x), native(y), _CMP_EQ_OQ); }

// The sizes that all weights r s c o, of `outputs` among `stride`, are sums of with signs; none for other weights.
inline std::vector<float> sizes_of(int64_t rows, int64_t outputs, const float* weights, int64_t stride) {
  Vector largest = {};
  for (int64_t i = 0; i < rows * stride; i += kLanes) {
    const Vector size = size_of(load(weights + i));
    largest = size > largest ? size : largest;
  }
  const Vector most = all(*std::max_element(&largest[0], &largest[0] + kLanes));
  if (most[0] == 0 || std::isinf(most[0])) return {};
  constexpr __mmask16 every = -1;
  __mmask16 same = every, thirds = every;  // all are as large, or else a third of it
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t o = 0; o < outputs; o += kLanes) {
      const Vector size = size_of(load(weights + row * stride + o));
      const __mmask16 outside = outputs - o < kLanes ? every << (outputs - o) : 0, large = equal_lanes(size, most) | outside;
      same &= large;
      thirds &= large | equal_lanes(3 * size, most);
    }
  if (same == every) return {most[0]};
  return thirds == every ? std::vector<float>{most[0] - most[0] / 3, most[0] / 3} : std::vector<float>{};
}

// The signs of weights r s c o; none if they are not such sums.
inline SignedWeights signed_weights(int64_t taps, int64_t count, int64_t outputs, const float* weights, int64_t stride) {
  SignedWeights found{sizes_of(taps * count, outputs, weights, stride), {}};
  if (found.sizes.empty()) return found;
  const Vector half = all(0.5f * (found.sizes.front() + (found.sizes.size() > 1 ? found.sizes.back() : 0)));
  found.signs.reserve(stride * taps * ceil_div(count, kFive) * found.sizes.size());
  for (int64_t o = 0; o < stride; o += kLanes)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < count; c += kFive)
        for (size_t k = 0; k < found.sizes.size(); ++k) {
          Whole first = {}, signs = {};
          for (int64_t i = 0; i < std::min(kFive, count - c); ++i) {
            const Vector w = load(weights + (tap * count + c + i) * stride + o);
            // -1 where the sign is +: that of the first size is the weight's; the second has it if the weight is large.
            const Whole plus = k == 0 ? w > 0 : (w > 0) == (size_of(w) > half);
            if (i == 0)
              first = plus, signs = ~plus & INT8_MIN;
            else
              signs |= (first == plus) & 1 << (i - 1);
          }
          for (int lane = 0; lane < kLanes; ++lane) found.signs.push_back(static_cast<int8_t>(signs[lane]));
        }
  return found;
}

// The cycles of one position, as list_cycles() counts.
inline double signed_cycles(const Windows& at, int64_t count, const Weights& weights) {
  if (weights.signs.sizes.empty()) return INFINITY;
  const double vectors = static_cast<double>(weights.signs.sizes.size() * weights.stride / kLanes);
  return ceil_div(count, kFive) * (0.9 * vectors * at.kh * at.kw + 3.0);
}

// The work on one image after another, for one block of inputs and all blocks of outputs.
class SignedSums {
 public:
  explicit SignedSums(const Windows& windows)
      : at_(windows), width_(ceil_div(at_.columns, kFew) * kFew + at_.kw - 1) {}

  // Rows [begin, end) of the sums of one image, at stride 1.
  void rows(const Part& part, int64_t begin, int64_t end) {
    fives_ = ceil_div(part.count, kFive);
    sums_.resize(at_.kh * width_ * fives_ * kLanes);
    int64_t next = 0;
    for (int64_t i = begin; i < end; ++i) {
      const auto [top, bottom] = at_.rows_read(i, i + 1);
      for (next = std::max(next, top); next < bottom; ++next) fill_row(part, next);
      for (int64_t j = 0; j < at_.columns; j += at_.columns - j > kFew ? kMany : kFew)
        for (size_t block = 0; block < part.weights.size(); ++block) {
          const int64_t offset = block * kBlockVectors * kLanes;
          const Window window{part.weights[block], top, bottom, i, j, part.first > 0};
          for (int64_t o = 0; o < std::min(part.weights[block].stride, at_.outputs - offset); o += 2 * kLanes)
            add(window, o, at_.outputs - offset - o, part.out + offset + o);
        }
    }
  }

 private:
  static constexpr int64_t kFew = 4, kMany = 8;  // positions at once

  // The inputs' rows [top, bottom) for the sums of row i, from column j on; whether these are added to.
  struct Window {
    const Weights& weights;
    int64_t top, bottom, i, j;
    bool add;
  };

  // The sums of the inputs of the last kh rows: by row, column with zeros around the maps, five inputs.
  float* sums_of(int64_t y) { return &sums_[y % at_.kh * width_ * fives_ * kLanes]; }

  void fill_row(const Part& part, int64_t y) {
    float* to = sums_of(y);
    for (int64_t x = -at_.px; x < width_ - at_.px; ++x) {
      const bool within = x >= 0 && x < at_.w;
      const float* from = part.in + (y * at_.w + x) * at_.inputs + part.first;
      for (int64_t c = 0; c < part.count; c += kFive, to += kLanes)
        within ? fill(load_some(from + c, std::min(kFive, part.count - c)), to) : store(to, Vector{});
    }
  }

  static void fill(Vector five, float* to) {
    const auto all_of = [&](int k) {
      return reinterpret_cast<Vector>(_mm512_permutexvar_ps(_mm512_set1_epi32(k), native(five)));
    };
    Vector sum = all_of(0);
    for (int k = 1; k < kFive; ++k) sum += all_of(k) * kSigns[k - 1];
    store(to, sum);
  }

  // Some positions and up to two vectors of outputs.
  void add(const Window& window, int64_t o, int64_t outputs, float* out) {
    with_constant<2>(window.weights.signs.sizes.size(), [&](auto sizes) {
      with_constant<2>(ceil_div(outputs, kLanes), [&](auto vectors) {
        if (at_.columns - window.j > kFew)
          add<kMany, vectors, sizes>(window, o, outputs, out);
        else
          add<kFew, vectors, sizes>(window, o, outputs, out);
      });
    });
  }

  template <int P, int V, int S>
  void add(const Window& window, int64_t o, int64_t outputs, float* out) {
    const int64_t positions = std::min<int64_t>(P, at_.columns - window.j), fives = at_.kw * fives_;
    const SignedWeights& weights = window.weights.signs;
    Vector sum[P][V] = {};
    for (int p = 0; window.add && p < positions; ++p)
      for (int v = 0; v < V; ++v)
        sum[p][v] = load_some(at_.place(out, window.i, window.j + p) + v * kLanes, outputs - v * kLanes);
    const int64_t above = std::clamp<int64_t>(at_.py - window.i, 0, at_.kh);  // rows of the window
    const int8_t* signs = &weights.signs[(o * at_.kh + above * kLanes) * fives * S];
    for (int64_t y = window.top; y < window.bottom; ++y) {
      const float* from[P];
      for (int p = 0; p < P; ++p) from[p] = sums_of(y) + (window.j + p) * fives_ * kLanes;
      for (int64_t five = 0; five < fives; ++five, signs += S * kLanes) {
        __m512i which[V][S];
        Vector factor[V][S];
        for (int v = 0; v < V; ++v)
          for (int s = 0; s < S; ++s) {
            const int8_t* bytes = signs + v * at_.kh * fives * S * kLanes + s * kLanes;
            which[v][s] = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
            const __m512i minus = _mm512_and_si512(which[v][s], _mm512_set1_epi32(INT32_MIN));
            const __m512i size = _mm512_castps_si512(_mm512_set1_ps(weights.sizes[s]));
            factor[v][s] = held(reinterpret_cast<Vector>(_mm512_xor_si512(minus, size)));
          }
        for (int p = 0; p < P; ++p) {
          const __m512 sums = native(held(load(from[p] + five * kLanes)));
          for (int v = 0; v < V; ++v)
            for (int s = 0; s < S; ++s)
              sum[p][v] += factor[v][s] * reinterpret_cast<Vector>(_mm512_permutexvar_ps(which[v][s], sums));
        }
      }
    }
    for (int p = 0; p < positions; ++p)
      for (int v = 0; v < V; ++v)
        store_some(at_.place(out, window.i, window.j + p) + v * kLanes, sum[p][v], outputs - v * kLanes);
  }

  // The sign of input k + 1 in each sum: bit k of its number.
  static constexpr Vector kSigns[kFive - 1] = {{-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
                                               {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
                                               {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
                                               {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};

  const Windows at_;
  const int64_t width_;
  int64_t fives_ = 0;
  AlignedFloats sums_;
};

#else

inline SignedWeights signed_weights(int64_t, int64_t, int64_t, const float*, int64_t) { return {}; }
inline double signed_cycles(const Windows&, int64_t, const Weights&) { return INFINITY; }

class SignedSums {
 public:
  explicit SignedSums(const Windows&) {}
  void rows(const Part&, int64_t, int64_t) {}
};

#endif

}  // namespace qpsnn
