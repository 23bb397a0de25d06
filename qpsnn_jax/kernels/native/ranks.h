// Ranks of small matrices of integers, by elimination over prime fields.
//
// The rank over GF(p) is never above that over the rationals, and below it only where p divides all non-zero minors of
// the highest order. Residues of primes below 2^13 are exact in float32: of two, and of their product less a third.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "memory.h"
#include "parallel.h"
#include "vectors.h"

namespace qpsnn {

// Residues modulo a prime p, as floats of magnitude p / 2 + 2 at most, whose products less another are below 2^24.
// It is copied where it is used, so that compilers know that no store changes it.
struct Modulus {
  float prime, reciprocal;

  // The residues of integers below 2^24. Adding 1.5 * 2^23 rounds to an integer.
  Vector residue(Vector x) const {
    constexpr float kRound = 12582912;
    const Vector quotient = (x * reciprocal + kRound) - kRound;
    return x - quotient * prime;
  }
};

// The integers modulo a prime, with the inverses of all residues.
class Field {
 public:
  explicit Field(int prime) : modulus{static_cast<float>(prime), 1.0f / prime}, inverses_(2 * kReach + 1) {
    std::vector<int> of(prime, 1);
    for (int i = 2; i < prime; ++i) of[i] = static_cast<int>((prime - prime / i) * int64_t{of[prime % i]} % prime);
    for (int i = -kReach; i <= kReach; ++i) {
      const int residue = ((i % prime) + prime) % prime, found = residue ? of[residue] : 0;
      inverses_[i + kReach] = static_cast<float>(found > prime / 2 ? found - prime : found);
    }
  }

  // Of a residue; 0 of 0, and of what is none.
  float inverse(float x) const { return std::abs(x) <= kReach ? inverses_[static_cast<int>(x) + kReach] : 0; }

  const Modulus modulus;

 private:
  static constexpr int kReach = 4096;
  std::vector<float> inverses_;
};

// Matrices of one size, one after another.
class Rank {
 public:
  Rank(int64_t rows, int64_t columns)
      : rows_(rows), columns_(columns), high_(std::min(rows, columns)), wide_(std::max(rows, columns)),
        stride_(ceil_div(wide_, kLanes) * kLanes), matrix_(high_ * stride_), left_(high_ * stride_), factors_(stride_),
        hashes_(high_) {
    std::mt19937 draw;
    for (float& factor : factors_) factor = static_cast<float>(1 + draw() / 2);
  }

  int64_t of(const float* matrix) {
    // The shorter side is that of the rows.
    for (int64_t i = 0; i < high_; ++i)
      for (int64_t j = 0; j < wide_; ++j)
        matrix_[i * stride_ + j] = rows_ <= columns_ ? matrix[i * columns_ + j] : matrix[j * columns_ + i];
    // Three primes of 13 bits, unless the rank is certain before: it is not above the number of different rows.
    static const Field fields[] = {Field(8179), Field(8171), Field(8167)};
    const int64_t most = distinct_rows();
    int64_t rank = 0;
    for (const Field& field : fields)
      if (rank < most) rank = std::max(rank, eliminate(field));
    return rank;
  }

 private:
  // The rows that are not 0, each counted once. Rows of one hash are taken for equal: then fewer primes are tried.
  int64_t distinct_rows() {
    int64_t found = 0;
    for (int64_t i = 0; i < high_; ++i) {
      Vector sum = {};
      for (int64_t j = 0; j < stride_; j += kLanes) sum += load(&matrix_[i * stride_ + j]) * load(&factors_[j]);
      uint64_t hash = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        uint32_t bits;
        std::memcpy(&bits, reinterpret_cast<const char*>(&sum) + lane * sizeof bits, sizeof bits);
        hash += bits * (0x9E3779B97F4A7C15u * (2 * lane + 1));
      }
      bool known = hash == 0;
      for (int64_t j = 0; j < found; ++j) known |= hashes_[j] == hash;
      hashes_[found] = hash;
      found += !known;
    }
    return found;
  }

  int64_t eliminate(const Field& field) {
    const Modulus modulus = field.modulus;
    for (int64_t k = 0; k < high_ * stride_; k += kLanes) store(&left_[k], modulus.residue(load(&matrix_[k])));
    int64_t rank = 0;
    for (int64_t i = 0; i < high_; ++i) {
      float* row = &left_[i * stride_];
      int64_t pivot = rank;
      while (pivot < wide_ && row[pivot] == 0) ++pivot;
      if (pivot >= wide_) continue;
      // The columns of pivots come first, so that what is left becomes narrower.
      if (pivot != rank)
        for (int64_t k = i; k < high_; ++k) std::swap(left_[k * stride_ + pivot], left_[k * stride_ + rank]);
      const int64_t first = rank / kLanes * kLanes;
      with_constant<kHeld + 1>((stride_ - first) / kLanes, [&](auto vectors) {
        const float inverse = field.inverse(row[rank]);
        subtract<vectors>(modulus, inverse, row + first, rank - first, high_ - i - 1, (stride_ - first) / kLanes);
      });
      ++rank;
    }
    return rank;
  }

  // Multiplies the row by `inverse`, that of its number at `pivot`, and subtracts it from those below as many times as
  // makes theirs 0.
  // Rows have `vectors` vectors: `Vectors` of them, which then stay in registers, or more than kHeld.
  template <int Vectors>
  void subtract(Modulus modulus, float inverse, float* row, int64_t pivot, int64_t below, int64_t vectors) const {
    const auto divided = [=](int64_t j) { return modulus.residue(load(row + j * kLanes) * inverse); };
    if constexpr (Vectors <= kHeld) {
      Vector held[Vectors];
      for (int j = 0; j < Vectors; ++j) held[j] = divided(j);
      for (float* other = row + stride_; below-- > 0; other += stride_) {
        const float factor = other[pivot];
        for (int j = 0; j < Vectors; ++j)
          store(other + j * kLanes, modulus.residue(load(other + j * kLanes) - factor * held[j]));
      }
    } else {
      for (int64_t j = 0; j < vectors; ++j) store(row + j * kLanes, divided(j));
      for (float* other = row + stride_; below-- > 0; other += stride_) {
        const float factor = other[pivot];
        for (int64_t j = 0; j < vectors; ++j)
          store(other + j * kLanes, modulus.residue(load(other + j * kLanes) - factor * load(row + j * kLanes)));
      }
    }
  }

  static constexpr int kHeld = 4;

  const int64_t rows_, columns_, high_, wide_, stride_;
  AlignedFloats matrix_, left_, factors_;
  std::vector<uint64_t> hashes_;
};

// The ranks of `count` matrices of integers below 2^24.
inline void matrix_ranks(const Pool& pool, int64_t count, int64_t rows, int64_t columns, const float* matrices,
                         float* ranks) {
  const int64_t size = rows * columns, together = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, size));
  std::vector<std::unique_ptr<Rank>> workers(pool.threads);
  parallel_for(pool, ceil_div(count, together), [&](int64_t item, int worker) {
    if (!workers[worker]) workers[worker] = std::make_unique<Rank>(rows, columns);
    for (int64_t i = item * together; i < std::min(count, (item + 1) * together); ++i)
      ranks[i] = static_cast<float>(workers[worker]->of(matrices + i * size));
  });
}

}  // namespace qpsnn
