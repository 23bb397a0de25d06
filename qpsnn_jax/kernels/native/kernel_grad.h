// The gradient of a convolution by its kernel: every input that is not 0 adds its multiple of rows of the cotangent.
//
// For one input channel the windows that see a position are neighbours, so their rows of the cotangent are contiguous:
// a few rows of vectors, whose sums over all positions of the channel, in several images if maps are small, stay in registers.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "geometry.h"
#include "pack.h"
#include "parallel.h"
#include "vectors.h"

namespace qpsnn {

// An input that is not 0: where the first of its windows is in the cotangent, in pixels, and its value.
struct Entry {
  int32_t pixel;
  float value;
};

constexpr int kSums = kRegisters * 3 / 4, kMostRows = 3;

// sums[r][v] += value * cotangent[pixel][r][v] over the entries.
template <int R, int V>
void add_rows(const Entry* entry, const Entry* end, const float* cotangent, int64_t pixel, int64_t row, float* sums,
              int64_t sums_row) {
  Vector sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = load(sums + r * sums_row + v * kLanes);
  for (; entry < end; ++entry) {
    const float* from = cotangent + entry->pixel * pixel;
    const float value = entry->value;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] += value * load(from + r * row + v * kLanes);
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(sums + r * sums_row + v * kLanes, sum[r][v]);
}

using AddRows = void (*)(const Entry*, const Entry*, const float*, int64_t, int64_t, float*, int64_t);

template <int R, int V = kSums / R>
void fill_table(AddRows (&table)[kSums + 1]) {
  if constexpr (V > 0) {
    table[V] = add_rows<R, V>;
    fill_table<R, V - 1>(table);
  }
}

struct Table {
  AddRows of[kMostRows + 1][kSums + 1] = {};
  Table() {
    fill_table<1>(of[1]);
    fill_table<2>(of[2]);
    fill_table<3>(of[3]);
  }
};

// add_rows for any number of rows and vectors, in pieces whose sums fit into the registers.
inline void add_entries(const Entry* entry, const Entry* end, const float* cotangent, int64_t pixel, int64_t row,
                        float* sums, int64_t sums_row, int64_t rows, int64_t vectors) {
  static const Table table;
  const int64_t row_pieces = ceil_div(rows, kMostRows);
  for (int64_t i = 0; i < row_pieces; ++i) {
    const int64_t first = rows * i / row_pieces, some = rows * (i + 1) / row_pieces - first;
    const int64_t pieces = ceil_div(vectors, kSums / some);
    for (int64_t j = 0; j < pieces; ++j) {
      const int64_t start = vectors * j / pieces, width = vectors * (j + 1) / pieces - start;
      table.of[some][width](entry, end, cotangent + first * row + start * kLanes, pixel, row,
                            sums + first * sums_row + start * kLanes, sums_row);
    }
  }
}

// The work on a range of images for a range of outputs.
class KernelGrad {
 public:
  KernelGrad(const Conv& conv, int64_t most_images, int64_t most_outputs)
      : conv_(conv), down_(phases_of(conv.kh, conv.sy)), right_(phases_of(conv.kw, conv.sx)) {
    top_ = down_[0].count - 1, left_ = right_[0].count - 1;
    rows_ = top_ + std::max(conv.oh, (conv.h - 1 + conv.py) / conv.sy + 1);
    columns_ = left_ + std::max(conv.ow, (conv.w - 1 + conv.px) / conv.sx + 1);
    lists_ = conv.sy * conv.sx * conv.channels;
    // The rows of maps whose part of the cotangent stays in the first level of the cache; if these are whole maps, those
    // whose cotangent stays in the second, with lists that are not much larger.
    const int64_t row_bytes = columns_ * most_outputs * sizeof(float);
    const int64_t most = std::max<int64_t>(1, kBandBytes / row_bytes - top_) * conv.sy;
    band_ = ceil_div(conv.h, ceil_div(conv.h, most));
    bands_ = ceil_div(conv.h, band_);
    capacity_ = ceil_div(conv.h, conv.sy) * ceil_div(conv.w, conv.sx);
    const int64_t bytes = std::max<int64_t>(rows_ * row_bytes, lists_ * capacity_ * sizeof(Entry) / kEntryShare);
    group_ = bands_ > 1 ? 1 : std::clamp<int64_t>(kGroupBytes / bytes, 1, std::max<int64_t>(1, most_images));
    slab_.resize((group_ * rows_ + 1) * columns_ * most_outputs + 2 * kLanes);
    // An odd number of lines of the cache, since lists are written side by side.
    capacity_ = (ceil_div(group_ * capacity_, kLine) | 1) * kLine;
    entries_.resize(lists_ * capacity_);
    next_.resize(lists_);
    places_.resize(conv.w * conv.channels + kPackedMore);
    values_.resize(places_.size());
    for (int64_t x = 0; x < conv.w; ++x)
      for (int64_t c = 0; c < conv.channels; ++c) {
        const int64_t phase = (x + conv.px) % conv.sx;
        list_of_.push_back(static_cast<int32_t>(phase * conv.channels + c));
        column_of_.push_back(static_cast<int32_t>((x + conv.px) / conv.sx - (right_[phase].count - 1) + left_));
      }
    bounds_.resize(lists_ * (bands_ + 1));
    for (const Phase& y : down_)
      for (const Phase& x : right_) {
        starts_.push_back(size_);
        size_ += conv.channels * y.count * ceil_div(x.count * most_outputs, kLanes) * kLanes;
      }
  }

  // How many sums there are. They lie by phase, channel and row of the window.
  int64_t size() const { return size_; }

  // The sums over images [begin, end) for the outputs [first, first + count).
  void run(const float* maps, const float* cotangent, int64_t begin, int64_t end, int64_t first, int64_t count,
           float* sums) {
    std::fill_n(sums, size_, 0.0f);
    std::fill(slab_.begin(), slab_.end(), 0.0f);
    for (int64_t image = begin; image < end; image += group_) {
      for (int64_t i = 0; i < lists_; ++i) next_[i] = &entries_[i * capacity_];
      for (int64_t k = 0; k < std::min(group_, end - image); ++k) {
        list(maps + (image + k) * conv_.h * conv_.w * conv_.channels, k);
        copy(cotangent + (image + k) * conv_.oh * conv_.ow * conv_.outputs + first, k, count);
      }
      mark(bands_);
      for (int64_t band = 0; band < bands_; ++band) add(band, count, sums);
    }
  }

  // Copies sums to where they are in the kernel's gradient.
  void write(int64_t first, int64_t count, const float* sums, float* result) const {
    for (size_t phase = 0; phase < starts_.size(); ++phase) {
      const Phase &y = down_[phase / conv_.sx], &x = right_[phase % conv_.sx];
      const int64_t row = ceil_div(x.count * count, kLanes) * kLanes;
      for (int64_t c = 0; c < conv_.channels; ++c)
        for (int64_t i = 0; i < y.count; ++i)
          for (int64_t j = 0; j < x.count; ++j)
            std::copy_n(sums + starts_[phase] + (c * y.count + i) * row + j * count, count,
                        result + ((y.tap_of(i) * conv_.kw + x.tap_of(j)) * conv_.channels + c) * conv_.outputs + first);
    }
  }

 private:
  static constexpr int64_t kBandBytes = 32 << 10, kGroupBytes = 128 << 10, kEntryShare = 4;
  static constexpr int64_t kLine = 64 / sizeof(Entry);

  // Sorts the inputs of image `k` of a group that are not 0 by phase and channel, in raster order.
  void list(const float* maps, int64_t k) {
    for (int64_t y = 0; y < conv_.h; ++y) {
      if (k == 0 && y % band_ == 0) mark(y / band_);
      const int64_t row = (y + conv_.py) / conv_.sy, phase = (y + conv_.py) % conv_.sy * conv_.sx;
      const int64_t top = k * rows_ + row - (down_[phase / conv_.sx].count - 1) + top_;
      const int64_t size = conv_.w * conv_.channels, found = pack(maps, size, 0, places_.data(), values_.data());
      Entry** to = &next_[phase * conv_.channels];
      for (int64_t i = 0; i < found; ++i) {
        const int32_t place = places_[i], pixel = static_cast<int32_t>(top * columns_) + column_of_[place];
        *to[list_of_[place]]++ = {pixel, values_[i]};
      }
      maps += size;
    }
  }

  void mark(int64_t band) {
    for (int64_t i = 0; i < lists_; ++i) bounds_[band * lists_ + i] = next_[i];
  }

  // The cotangent of image `k` of a group with zeros around it; those are there already.
  void copy(const float* cotangent, int64_t k, int64_t count) {
    for (int64_t y = 0; y < conv_.oh; ++y)
      for (int64_t x = 0; x < conv_.ow; ++x)
        std::copy_n(cotangent + (y * conv_.ow + x) * conv_.outputs, count,
                    &slab_[((k * rows_ + y + top_) * columns_ + x + left_) * count]);
  }

  void add(int64_t band, int64_t count, float* sums) const {
    for (size_t phase = 0; phase < starts_.size(); ++phase) {
      const int64_t rows = down_[phase / conv_.sx].count, columns = right_[phase % conv_.sx].count;
      const int64_t vectors = ceil_div(columns * count, kLanes);
      if (rows * columns == 0) continue;
      for (int64_t c = 0; c < conv_.channels; ++c) {
        const int64_t i = phase * conv_.channels + c;
        const Entry *entry = bounds_[band * lists_ + i], *end = bounds_[(band + 1) * lists_ + i];
        if (entry < end)
          add_entries(entry, end, slab_.data(), count, columns_ * count,
                      sums + starts_[phase] + c * rows * vectors * kLanes, vectors * kLanes, rows, vectors);
      }
    }
  }

  const Conv conv_;
  const std::vector<Phase> down_, right_;
  int64_t top_, left_, rows_, columns_, lists_, band_, bands_, group_, capacity_, size_ = 0;
  std::vector<int64_t> starts_;
  AlignedFloats slab_;
  std::vector<float> values_;
  std::vector<int32_t> places_, list_of_, column_of_;  // of the inputs of one row of maps
  std::vector<Entry> entries_;
  std::vector<Entry*> next_, bounds_;
};

inline void kernel_grad(const Pool& pool, const Conv& conv, const float* maps, const float* cotangent, float* result) {
  const int64_t size = conv.kh * conv.kw * conv.channels * conv.outputs;
  if (size == 0) return;
  if (conv.h == 0 || conv.w == 0) return void(std::fill_n(result, size, 0.0f));
  // Parts whatever the number of threads, so that sums are of the same order everywhere.
  constexpr int64_t kMostOutputs = 64, kParts = 16;
  const int64_t most = std::min(conv.outputs, kMostOutputs), blocks = ceil_div(conv.outputs, most);
  const int64_t parts = std::clamp<int64_t>(ceil_div(kParts, blocks), 1, std::max<int64_t>(1, conv.images));
  std::vector<std::unique_ptr<KernelGrad>> workers(pool.threads);
  const auto worker_of = [&](int worker) -> KernelGrad& {
    if (!workers[worker]) workers[worker] = std::make_unique<KernelGrad>(conv, ceil_div(conv.images, parts), most);
    return *workers[worker];
  };
  const int64_t length = worker_of(0).size(), all = blocks * length;
  const UnsetFloats owner(parts * all);
  float* sums = owner.data();
  const auto count_of = [&](int64_t block) { return std::min(most, conv.outputs - block * most); };
  parallel_for(pool, parts * blocks, [&](int64_t item, int worker) {
    const int64_t part = item / blocks, block = item % blocks;
    worker_of(worker).run(maps, cotangent, conv.images * part / parts, conv.images * (part + 1) / parts, block * most,
                          count_of(block), &sums[item * length]);
  });
  constexpr int64_t kPiece = 4096;
  if (parts > 1)
    parallel_for(pool, ceil_div(all, kPiece), [&](int64_t piece, int) {
      const int64_t start = piece * kPiece, end = std::min(start + kPiece, all);
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = start; i < end; ++i) sums[i] += sums[part * all + i];
    });
  parallel_for(pool, blocks, [&](int64_t block, int) {
    workers[0]->write(block * most, count_of(block), &sums[block * length], result);
  });
}

}  // namespace qpsnn
