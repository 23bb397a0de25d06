// Passes over arrays whose last axis is channels, in pieces in which every channel has the same places.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "vectors.h"

namespace qpsnn {

// A vector of which all lanes are in memory, or only the first `count`; the others are read as 0.
struct AllLanes {
  Vector load(const float* from) const { return qpsnn::load(from); }
  void store(float* to, Vector x) const { qpsnn::store(to, x); }
};
struct FirstLanes {
  int64_t count;
  Vector load(const float* from) const {
    Vector x = {};
    std::memcpy(&x, from, count * sizeof(float));
    return x;
  }
  void store(float* to, Vector x) const { std::memcpy(to, &x, count * sizeof(float)); }
};

// run(i, lanes) for every vector of `count` numbers.
template <class Run>
void each_vector(int64_t count, const Run& run) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) run(i, AllLanes());
  if (i < count) run(i, FirstLanes{count - i});
}

// `examples` rows of `size` numbers each, in pieces of `length`, a multiple of a vector and, in rows of several pieces, of
// the channels; never less than one place for each channel.
struct Pieces {
  int64_t examples, size, channels, length, count;

  Pieces(int64_t examples, int64_t size, int64_t channels, int64_t wanted)
      : examples(examples), size(size), channels(std::max<int64_t>(1, channels)) {
    const int64_t period = std::lcm(this->channels, int64_t{kLanes});
    const int64_t whole = ceil_div(std::max(this->channels, size), kLanes) * kLanes;
    length = std::min(ceil_div(wanted, period) * period, whole);
    count = ceil_div(size, length);
  }

  // One value for each channel, at all its places in a piece.
  AlignedFloats repeated(const float* values) const {
    AlignedFloats places(length);
    for (int64_t i = 0; i < length && examples * count > 0; i += channels)
      std::copy_n(values, std::min(channels, length - i), &places[i]);
    return places;
  }

  // Adds the places of a piece up by channel.
  void add_up(const float* places, double* sums) const {
    for (int64_t i = 0; i < length; i += channels)
      for (int64_t c = 0; c < std::min(channels, length - i); ++c) sums[c] += places[i + c];
  }

  int64_t parts() const { return std::min<int64_t>(kParts, examples * count); }

  // work(example, start, count, worker) for every piece. Those of a part follow each other in one worker, between
  // begin(worker) and end(part, worker). Parts are the same whatever the number of threads, so that sums have the same
  // order everywhere.
  template <class Begin, class Work, class End>
  void each(const Pool& pool, const Begin& begin, const Work& work, const End& end) const {
    const int64_t items = examples * count, parts = this->parts();
    parallel_for(pool, parts, [&](int64_t part, int worker) {
      begin(worker);
      for (int64_t item = items * part / parts; item < items * (part + 1) / parts; ++item) {
        const int64_t start = item % count * length;
        work(item / count, start, std::min(length, size - start), worker);
      }
      end(part, worker);
    });
  }

 private:
  static constexpr int64_t kParts = 64;
};

// Sums by channel of `kinds` numbers at every place: each worker adds to the places of a piece, then parts are added.
class ChannelSums {
 public:
  ChannelSums(const Pieces& pieces, const Pool& pool, int kinds)
      : pieces_(pieces), kinds_(kinds), places_(pool.threads), parts_(pieces.parts() * kinds * pieces.channels) {}

  void begin(int worker) { places_[worker].assign(kinds_ * pieces_.length, 0.0f); }
  float* places(int worker, int kind) { return places_[worker].data() + kind * pieces_.length; }
  void end(int64_t part, int worker) {
    for (int kind = 0; kind < kinds_; ++kind)
      pieces_.add_up(places(worker, kind), &parts_[(part * kinds_ + kind) * pieces_.channels]);
  }

  double total(int kind, int64_t channel) const {
    double sum = 0;
    for (int64_t part = 0; part < pieces_.parts(); ++part)
      sum += parts_[(part * kinds_ + kind) * pieces_.channels + channel];
    return sum;
  }

 private:
  const Pieces& pieces_;
  const int kinds_;
  std::vector<AlignedFloats> places_;
  std::vector<double> parts_;
};

}  // namespace qpsnn
