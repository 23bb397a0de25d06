// Convolutions whose sums only neurons read: those of an example stay in the cache, and spikes are bits.
#pragma once

#include "correlate.h"
#include "neurons.h"

namespace qpsnn {

// The steps of neurons whose spikes are packed, and so may be the residual.
class PackingNeurons {
 public:
  PackingNeurons(const Pool& pool, const Neurons& n, const Currents& from, const PackedSpikes* residual,
                 const PackedSpikes& spikes, float* last)
      : layer_(n, from, cached_length(n.steps)), n_(n), residual_(residual), spikes_(spikes), last_(last),
        scratch_(pool.threads) {}

  const Pieces& pieces() const { return layer_.pieces; }

  // Those [start, start + count) of an example, whole pixels, whose sums are at the places `x` of `sums`.
  void run(int64_t example, int64_t start, int64_t count, const float* sums, const Steps& x, int worker) {
    const int64_t length = pieces().length, image = example * n_.steps;
    const int64_t pixel = start / n_.channels, pixels = count / n_.channels;
    scratch_[worker].resize((1 + (residual_ ? 2 : 1) * n_.steps) * length);
    float *left = scratch_[worker].data(), *found = left + length, *residual = found + n_.steps * length;
    layer_.start(left, example * n_.size + start, count);
    Piece piece = layer_.piece();
    piece.x = sums;
    Steps places{image * n_.size + start, n_.size};
    if (residual_) {
      for (int64_t t = 0; t < n_.steps; ++t) residual_->read(image + t, pixel, pixels, residual + t * length);
      piece.residual = residual, places = {0, length};
    }
    const auto run = piece.residual ? run_steps<false, true> : run_steps<false, false>;
    run(piece, n_.steps, count, left, x, places, {0, length}, found);
    for (int64_t t = 0; t < n_.steps; ++t) spikes_.write(image + t, pixel, pixels, found + t * length);
    std::copy_n(left, count, last_ + example * n_.size + start);
  }

 private:
  const Layer layer_;
  const Neurons n_;
  const PackedSpikes *residual_, spikes_;
  float* last_;
  std::vector<AlignedFloats> scratch_;
};

// Sums first, then neurons.
inline void conv_then_lif(const Pool& pool, const Conv& conv, const Neurons& n, const Maps& maps, const float* kernel,
                          PackingNeurons& neurons) {
  AlignedFloats sums(conv.images * n.size);
  conv_sums(pool, conv, maps, kernel, sums.data());
  neurons.pieces().each(
      pool, [](int) {},
      [&](int64_t example, int64_t start, int64_t count, int worker) {
        neurons.run(example, start, count, sums.data(), {example * n.steps * n.size + start, n.size}, worker);
      },
      [](int64_t, int) {});
}

// The spikes of lif() for the sums of maps b [t] h w i, in the place of currents.x, which is not read, and the potentials
// after the last step, b size. Maps without steps are the same at every step. The residual is `packed` if that is given.
inline void conv_lif(const Pool& pool, const Conv& conv, const Neurons& n, const Maps& maps, const float* kernel,
                     const Currents& currents, const PackedSpikes* packed, const PackedSpikes& spikes, float* last) {
  spikes.clear();
  if (n.batch * n.size == 0) return;
  const Windows at = windows_of(conv);
  const int64_t each = conv.images / n.batch, row = conv.ow * conv.outputs;
  PackingNeurons neurons(pool, n, currents, packed, spikes, last);
  // Few examples leave threads idle, to which the maps of their steps are work enough.
  if (each > 1 && n.batch < 4 * pool.threads) return conv_then_lif(pool, conv, n, maps, kernel, neurons);
  const BlockWeights blocks = block_weights(pool, at, conv.images, false, weights_of(conv, kernel));
  const std::vector<float> skipped = not_finite(conv, kernel);
  // Each worker has the sums of its examples; of few examples, that all workers share, there is one array of sums.
  const bool common = conv.images < kParts;
  AlignedFloats all(common ? conv.images * n.size : 0);
  std::vector<AlignedFloats> own(pool.threads);
  const auto sums_of = [&](const Band& band, int worker) {
    return common ? &all[band.first * each * n.size] : own[worker].data();
  };
  const auto to = [&](const Band& band, int worker) {
    if (!common) own[worker].resize(band.examples * each * n.size);
    return sums_of(band, worker);
  };
  correlate(pool, at, blocks, n.batch, each, maps, to, [&](const Band& band, int worker) {
    float* sums = sums_of(band, worker);
    const int64_t first = band.begin * row, behind = band.end * row, length = neurons.pieces().length;
    for (int64_t image = 0; image < band.examples * each; ++image) {
      if (conv.channels == 0) std::fill_n(sums + image * n.size + first, behind - first, 0.0f);
      add_everywhere(skipped, (band.end - band.begin) * conv.ow, sums + image * n.size + first);
    }
    for (int64_t example = 0; example < band.examples; ++example)
      for (int64_t start = first; start < behind; start += length) {
        const Steps places{example * each * n.size + start, each > 1 ? n.size : 0};
        neurons.run(band.first + example, start, std::min(length, behind - start), sums, places, worker);
      }
  });
}

}  // namespace qpsnn
