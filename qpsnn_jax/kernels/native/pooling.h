// Max-pools of spikes, and their gradient, whose windows do not overlap.
#pragma once

#include "channels.h"
#include "packed.h"

namespace qpsnn {

// Maps b h w c, pooled maps b oh ow c.
struct Tiles {
  int64_t images, h, w, channels, oh, ow, kh, kw;
};

// The first of the largest inputs of each window receives its cotangent, all others 0; `result` may be `maps`. A NaN
// counts as larger than what is before it.
inline void max_pool_grad(const Pool& pool, const Tiles& n, const float* maps, const float* cotangent, float* result) {
  const int64_t row = n.w * n.channels, count = n.kh * n.kw;
  parallel_for(pool, n.images, [&](int64_t image, int) {
    const float* from = maps + image * n.h * row;
    float* to = result + image * n.h * row;
    const float* given = cotangent + image * n.oh * n.ow * n.channels;
    for (int64_t y = 0; y < n.oh; ++y)
      for (int64_t x = 0; x < n.ow; ++x, given += n.channels)
        each_vector(n.channels, [&](int64_t c, auto some) {
          const int64_t corner = y * n.kh * row + x * n.kw * n.channels + c;
          const auto place = [&](int64_t k) { return corner + k / n.kw * row + k % n.kw * n.channels; };
          Vector largest = some.load(from + corner);
          Whole first = {};
          for (int64_t k = 1; k < count; ++k) {
            const Vector each = some.load(from + place(k));
            const Whole larger = (each > largest) | (each != each);
            largest = larger ? each : largest;
            first = larger ? Whole{} + static_cast<int32_t>(k) : first;
          }
          const Vector value = some.load(given + c);
          for (int64_t k = 0; k < count; ++k)
            some.store(to + place(k), first == static_cast<int32_t>(k) ? value : Vector{});
        });
    // What no window sees.
    for (int64_t y = 0; y < n.h; ++y) {
      const int64_t seen = y < n.oh * n.kh ? n.ow * n.kw * n.channels : 0;
      std::fill(to + y * row + seen, to + (y + 1) * row, 0.0f);
    }
  });
}

// The largest of each window of packed spikes, which is NaN if one of them is.
inline void max_pool(const Pool& pool, const Tiles& n, const PackedSpikes& spikes, const PackedSpikes& result) {
  const int64_t bytes = spikes.pixel_bytes();
  const auto merge = [&](const uint8_t* from, uint8_t* to) {
    std::fill_n(to, n.oh * n.ow * bytes, 0);
    for (int64_t y = 0; y < n.oh * n.kh; ++y)
      for (int64_t x = 0; x < n.ow * n.kw; ++x) {
        const uint8_t* pixel = from + (y * n.w + x) * bytes;
        uint8_t* merged = to + (y / n.kh * n.ow + x / n.kw) * bytes;
        for (int64_t i = 0; i < bytes; ++i) merged[i] |= pixel[i];
      }
  };
  result.clear();
  parallel_for(pool, n.images, [&](int64_t image, int) {
    merge(spikes.bits(image), result.bits(image));
    if (spikes.any_nan(image))
      merge(spikes.nans(image), result.nans(image)), result.set_nan(image);
    else
      std::fill_n(result.nans(image), result.image_bytes(), 0);
  });
}

}  // namespace qpsnn
