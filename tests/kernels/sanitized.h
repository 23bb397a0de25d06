// What the checks of the native loops share.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "geometry.h"
#include "packed.h"

using namespace qpsnn;

// Maps, or a kernel, or sums: small integers, so that every order gives the same; many are 0.
static std::vector<float> numbers(int64_t count, double density) {
  static std::mt19937 draw(0);
  std::vector<float> found(count);
  for (float& x : found) x = draw() % 1000 < 1000 * density ? static_cast<float>(draw() % 5) - 2 : 0;
  return found;
}

// Takes every product off the sums and both gradients. One thread on its own, which is slow to watch, so it is not watched.
__attribute__((no_sanitize("thread"), no_sanitize("address"), no_sanitize("undefined"))) static void subtract_products(
    const Conv& c, const float* maps, const float* kernel, const float* cotangent, float* sums, float* by_input,
    float* by_kernel) {
  for (int64_t b = 0; b < c.images; ++b)
    for (int64_t i = 0; i < c.oh; ++i)
      for (int64_t j = 0; j < c.ow; ++j)
        for (int64_t k = 0; k < c.kh; ++k)
          for (int64_t l = 0; l < c.kw; ++l) {
            const int64_t row = i * c.sy + k - c.py, column = j * c.sx + l - c.px;
            if (row < 0 || row >= c.h || column < 0 || column >= c.w) continue;
            const int64_t y = ((b * c.oh + i) * c.ow + j) * c.outputs;
            for (int64_t in = 0; in < c.channels; ++in) {
              const int64_t x = ((b * c.h + row) * c.w + column) * c.channels + in;
              const int64_t w = ((k * c.kw + l) * c.channels + in) * c.outputs;
              for (int64_t out = 0; out < c.outputs; ++out) {
                sums[y + out] -= maps[x] * kernel[w + out];
                by_input[x] -= cotangent[y + out] * kernel[w + out];
                by_kernel[w + out] -= maps[x] * cotangent[y + out];
              }
            }
          }
}

static Conv with_output(Conv c) {
  c.oh = (c.h + 2 * c.py - c.kh) / c.sy + 1, c.ow = (c.w + 2 * c.px - c.kw) / c.sx + 1;
  return c;
}

// Equal, or both NaN.
static bool same(float one, float two) { return one == two || (std::isnan(one) && std::isnan(two)); }

// Images of numbers as packed spikes, those that are not 1 or NaN as 0, and what they hold then.
struct Packed {
  Packed(int64_t images, int64_t pixels, int64_t channels)
      : data(PackedSpikes::size(images, pixels, channels), 0xff), spikes(data.data(), images, pixels, channels),
        images(images), pixels(pixels), channels(channels) {
    spikes.clear();
  }
  void write(const std::vector<float>& from) {
    for (int64_t i = 0; i < images; ++i)
      for (int64_t k = 0; k < pixels; ++k) spikes.write(i, k, 1, from.data() + (i * pixels + k) * channels);
  }
  std::vector<float> read() const {
    std::vector<float> found(images * pixels * channels, -1);
    for (int64_t i = 0; i < images; ++i) spikes.read(i, 0, pixels, found.data() + i * pixels * channels);
    return found;
  }
  std::vector<uint8_t> data;
  const PackedSpikes spikes;
  const int64_t images, pixels, channels;
};

// Spikes of which a share is NaN.
static std::vector<float> spikes_and(int64_t count, double nans) {
  auto found = numbers(count, 0.5);
  const auto chosen = numbers(count, nans);
  for (int64_t i = 0; i < count; ++i) found[i] = chosen[i] != 0 ? NAN : found[i] != 0;
  return found;
}
