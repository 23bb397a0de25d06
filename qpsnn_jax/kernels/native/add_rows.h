// Sums of rows of vectors over the entries of a list, which stay in registers.
#pragma once

#include "geometry.h"
#include "vectors.h"

namespace qpsnn {

constexpr int kSums = kRegisters - 4, kMostRows = 3;

// Inputs of one channel that are not 0: where the first of their windows is in the cotangent, in pixels, and their values,
// `step` apart, which is 0 if all are 1.
struct Entries {
  const int32_t *pixel, *end;
  const float* value;
  int64_t step;
};

// sums[r][v] += value * cotangent[pixel][r][v] over the entries.
template <int R, int V>
void add_rows(Entries entries, const float* cotangent, int64_t pixel, int64_t row, float* sums, int64_t sums_row) {
  Vector sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = load(sums + r * sums_row + v * kLanes);
  for (; entries.pixel < entries.end; ++entries.pixel, entries.value += entries.step) {
    const float *from = cotangent + *entries.pixel * pixel, value = *entries.value;
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sum[r][v] += value * load(from + v * kLanes);
      from = held(from + row);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(sums + r * sums_row + v * kLanes, sum[r][v]);
}

using AddRows = void (*)(Entries, const float*, int64_t, int64_t, float*, int64_t);

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
inline void add_entries(const Entries& entries, const float* cotangent, int64_t pixel, int64_t row, float* sums,
                        int64_t sums_row, int64_t rows, int64_t vectors) {
  static const Table table;
  const int64_t row_pieces = ceil_div(rows, kMostRows);
  for (int64_t i = 0; i < row_pieces; ++i) {
    const int64_t first = rows * i / row_pieces, some = rows * (i + 1) / row_pieces - first;
    const int64_t pieces = ceil_div(vectors, kSums / some);
    for (int64_t j = 0; j < pieces; ++j) {
      const int64_t start = vectors * j / pieces, width = vectors * (j + 1) / pieces - start;
      table.of[some][width](entries, cotangent + first * row + start * kLanes, pixel, row,
                            sums + first * sums_row + start * kLanes, sums_row);
    }
  }
}

// The inputs of one phase of the strides that some tap reads, and where its sums are, by channel and row of the window.
struct ReadPhase {
  Phase y, x;
  int64_t sums;
};

}  // namespace qpsnn
