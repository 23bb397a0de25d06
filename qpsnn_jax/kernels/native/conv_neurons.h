// Convolutions whose sums only neurons read: those of an example stay in the cache.
#pragma once

#include "correlate.h"
#include "neurons.h"

namespace qpsnn {

// The spikes of lif() for the sums of maps b [t] h w i, in the place of currents.x, which is not read, and the potentials after the
// last step, b size. Maps without steps are the same at every step.
template <bool Residual>
void conv_lif(const Pool& pool, const Conv& conv, const Neurons& n, const float* maps, const float* kernel,
              const Currents& currents, float* spikes, float* last) {
  if (n.batch * n.size == 0) return;
  const Windows at = windows_of(conv);
  const int64_t each = conv.images / n.batch, row = conv.ow * conv.outputs;
  // Few examples leave threads idle, to which the maps of their steps are work enough.
  if (each > 1 && n.batch < 4 * pool.threads) {
    AlignedFloats sums(conv.images * n.size);
    conv_sums(pool, conv, maps, kernel, sums.data());
    Currents computed = currents;
    computed.x = sums.data();
    return lif<false, Residual>(pool, n, computed, spikes, last);
  }
  const Layer layer(n, currents, 1024);
  const BlockWeights blocks = block_weights(pool, at, conv.images, false, weights_of(conv, kernel));
  const std::vector<float> skipped = not_finite(conv, kernel);
  // Each worker has the sums of its examples; of few examples, that all workers share, there is one array of sums.
  const bool common = conv.images < kParts;
  AlignedFloats all(common ? conv.images * n.size : 0);
  std::vector<AlignedFloats> own(pool.threads), potentials(pool.threads);
  const auto sums_of = [&](const Band& band, int worker) {
    return common ? &all[band.first * each * n.size] : own[worker].data();
  };
  const auto to = [&](const Band& band, int worker) {
    if (!common) own[worker].resize(band.examples * each * n.size);
    return sums_of(band, worker);
  };
  correlate(pool, at, blocks, n.batch, each, maps, to, [&](const Band& band, int worker) {
    potentials[worker].resize(layer.pieces.length);
    float *sums = sums_of(band, worker), *left = potentials[worker].data();
    const int64_t first = band.begin * row, behind = band.end * row;
    for (int64_t image = 0; image < band.examples * each; ++image) {
      if (conv.channels == 0) std::fill_n(sums + image * n.size + first, behind - first, 0.0f);
      add_everywhere(skipped, (band.end - band.begin) * conv.ow, sums + image * n.size + first);
    }
    Piece piece = layer.piece();
    piece.x = sums;
    for (int64_t example = 0; example < band.examples; ++example)
      for (int64_t start = first; start < behind; start += layer.pieces.length) {
        const int64_t count = std::min(layer.pieces.length, behind - start), whole = band.first + example;
        layer.start(left, whole * n.size + start, count);
        run_steps<false, Residual>(piece, n.steps, count, left, {example * each * n.size + start, each > 1 ? n.size : 0},
                                   {whole * n.steps * n.size + start, n.size}, spikes);
        std::copy_n(left, count, last + whole * n.size + start);
      }
  });
}

}  // namespace qpsnn
