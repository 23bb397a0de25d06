// Packed spikes, and neurons of sums, for the compiler's sanitizers.
#pragma once

#include "conv_neurons.h"
#include "sanitized.h"

static int check_packing(int64_t images, int64_t pixels, int64_t channels) {
  int wrong = 0;
  for (double nans : {0.0, 0.01}) {
    const auto given = spikes_and(images * pixels * channels, nans);
    Packed packed(images, pixels, channels);
    packed.write(given);
    const auto found = packed.read();
    for (size_t i = 0; i < given.size(); ++i) wrong += !same(found[i], given[i]);
  }
  return wrong;
}

// Neurons of sums in one pass against both in two, for maps of every step or of all; with `spikes` the maps are 0 and 1, of
// which a share is NaN, and both they and the residual are packed too.
static int check_neurons(const Pool& pool, const Conv& given, int64_t batch, int64_t steps, bool spikes, double nans = 0) {
  Conv c = with_output(given);
  c.images = batch * steps;
  const int64_t pixels = c.oh * c.ow, size = pixels * c.outputs;
  auto maps = numbers(c.images * c.h * c.w * c.channels, 1), residual = numbers(c.images * size, 0.5);
  if (spikes) maps = spikes_and(maps.size(), nans), residual = spikes_and(residual.size(), nans);
  const auto kernel = numbers(c.kh * c.kw * c.channels * c.outputs, 1);
  const auto factor = numbers(c.outputs, 1), offset = numbers(c.outputs, 1), initial = numbers(batch * size, 0.5);
  std::vector<float> tau(c.outputs), threshold(c.outputs);
  for (int64_t o = 0; o < c.outputs; ++o) tau[o] = std::array{0.25f, 0.5f, 1.0f}[o % 3], threshold[o] = 0.75f + 0.25f * (o % 5);
  const Neurons n{batch, steps, size, c.outputs, tau.data(), threshold.data(), true, false};
  std::vector<float> sums(c.images * size, NAN), apart(c.images * size), last(batch * size, NAN);
  int wrong = 0;
  for (const int64_t each : {steps, int64_t{1}}) {
    c.images = batch * each;
    conv_sums(pool, c, {maps.data()}, kernel.data(), sums.data());
    for (int64_t b = batch - 1; b >= 0 && each < steps; --b) {  // the same at every step
      const std::vector<float> one(sums.begin() + b * size, sums.begin() + (b + 1) * size);
      for (int64_t t = 0; t < steps; ++t) std::copy_n(one.data(), size, &sums[(b * steps + t) * size]);
    }
    const Currents currents{sums.data(), factor.data(), offset.data(), residual.data(), initial.data()};
    lif<false, true>(pool, n, currents, apart.data());
    const Currents others{nullptr, factor.data(), offset.data(), residual.data(), initial.data()};
    Packed together(batch * steps, pixels, c.outputs);
    conv_lif(pool, c, n, {maps.data()}, kernel.data(), others, nullptr, together.spikes, last.data());
    const auto found = together.read();
    for (size_t i = 0; i < apart.size(); ++i) wrong += !same(found[i], apart[i]);
    lif<true, true>(pool, n, currents, apart.data());
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < size; ++i) {
        const float charged = apart[((b + 1) * steps - 1) * size + i];
        wrong += !same(last[b * size + i], charged >= threshold[i % c.outputs] ? 0 : charged);
      }
    if (!spikes) continue;
    Packed packed_maps(c.images, c.h * c.w, c.channels), packed_residual(batch * steps, pixels, c.outputs);
    Packed again(batch * steps, pixels, c.outputs);
    packed_maps.write(maps), packed_residual.write(residual);
    const Maps of_spikes{nullptr, &packed_maps.spikes};
    conv_lif(pool, c, n, of_spikes, kernel.data(), {nullptr, factor.data(), offset.data(), nullptr, initial.data()},
             &packed_residual.spikes, again.spikes, last.data());
    wrong += again.data != together.data;
  }
  return wrong;
}
