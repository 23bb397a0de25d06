// Convolutions whose sums only neurons read: those of an example stay in the cache.
#pragma once

#include "correlate.h"
#include "neurons.h"

namespace qpsnn {

// The spikes of lif() for the sums of maps b [t] h w i as x, whose own x is null. Maps without steps are the same at every step.
template <bool Residual>
void conv_lif(const Pool& pool, const Conv& conv, const Neurons& n, const float* maps, const float* kernel,
              const Currents& currents, float* spikes) {
  if (n.batch * n.size == 0) return;
  const Windows at = windows_of(conv);
  const int64_t each = conv.images / n.batch, row = conv.ow * conv.outputs;
  const Layer layer(n, currents, 1024);
  const BlockWeights blocks = block_weights(pool, at, conv.images, false, weights_of(conv, kernel));
  const std::vector<float> skipped = not_finite(conv, kernel);
  std::vector<AlignedFloats> sums(pool.threads), potentials(pool.threads);
  const auto to = [&](const Band& band, int worker) {
    sums[worker].resize(band.examples * each * n.size);
    if (conv.channels == 0) std::fill(sums[worker].begin(), sums[worker].end(), 0.0f);
    return sums[worker].data();
  };
  correlate(pool, at, blocks, n.batch, each, maps, to, [&](const Band& band, int worker) {
    potentials[worker].resize(layer.pieces.length);
    float *x = sums[worker].data(), *left = potentials[worker].data();
    add_everywhere(skipped, band.examples * each * conv.oh * conv.ow, x);
    Piece piece = layer.piece();
    piece.x = x;
    for (int64_t example = 0; example < band.examples; ++example)
      for (int64_t start = band.begin * row; start < band.end * row; start += layer.pieces.length) {
        const int64_t count = std::min(layer.pieces.length, band.end * row - start), whole = band.first + example;
        layer.start(left, whole * n.size + start, count);
        run_steps<false, Residual>(piece, n.steps, count, left, {example * each * n.size + start, each > 1 ? n.size : 0},
                                   {whole * n.steps * n.size + start, n.size}, spikes);
      }
  });
}

}  // namespace qpsnn
