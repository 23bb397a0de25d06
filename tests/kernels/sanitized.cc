// The loops of the native kernels on arrays of exact size, against sums over all taps; for the compiler's sanitizers.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>
#include <thread>

#include "kernel_grad.h"
#include "moments.h"
#include "neurons.h"
#include "pooling.h"
#include "ranks.h"
#include "sanitized_neurons.h"
#include "waiting.h"

// With `spikes`, maps and cotangents are 0 and 1; with `odd`, weights are -3, -1, 1 and 3.
static int check(const Pool& pool, const Conv& given, double density, bool spikes = false, bool odd = false) {
  const Conv c = with_output(given);
  auto maps = numbers(c.images * c.h * c.w * c.channels, density);
  if (spikes || density < 0.1)
    for (float& x : maps) x = x != 0;
  auto kernel = numbers(c.kh * c.kw * c.channels * c.outputs, 1);
  for (float& w : kernel) w = !odd ? w : w > 0 ? 2 * w - 1 : 2 * w + 1;
  auto cotangent = numbers(c.images * c.oh * c.ow * c.outputs, density);
  for (float& y : cotangent) y = spikes ? y != 0 : y;
  std::vector<float> sums(cotangent.size(), NAN), by_input(maps.size(), NAN), by_kernel(kernel.size(), NAN);
  conv_sums(pool, c, {maps.data()}, kernel.data(), sums.data());
  conv_input_grad(pool, c, cotangent.data(), kernel.data(), by_input.data());
  kernel_grad(pool, c, maps.data(), cotangent.data(), by_kernel.data());
  subtract_products(c, maps.data(), kernel.data(), cotangent.data(), sums.data(), by_input.data(), by_kernel.data());
  int wrong = 0;
  for (const auto* left : {&sums, &by_input, &by_kernel})
    for (float x : *left) wrong += x != 0;
  return wrong;
}

// How many results differ between the pools: real numbers show another order of sums.
static int differences(const std::vector<Pool>& pools, const Conv& given) {
  const Conv c = with_output(given);
  static std::mt19937 draw(1);
  const auto reals = [&](int64_t count, int zeros) {
    std::vector<float> found(count);
    for (float& x : found) x = static_cast<int>(draw() % 10) < zeros ? 0 : static_cast<float>(draw()) / 1e9f - 2;
    return found;
  };
  const int64_t size = c.h * c.w * c.channels;
  const auto maps = reals(c.images * size, 7), kernel = reals(c.kh * c.kw * c.channels * c.outputs, 0);
  const auto cotangent = reals(c.images * c.oh * c.ow * c.outputs, 2), by_spikes = reals(maps.size(), 2);
  const auto factor = reals(c.channels, 0), offset = reals(c.channels, 0), tau = reals(c.channels, 0);
  const std::vector<float> threshold(c.channels, 1);
  std::vector<float> before;
  int differ = 0;
  for (const Pool& pool : pools) {
    std::vector<float> sums(cotangent.size()), by_input(maps.size()), by_kernel(kernel.size()), by_channel(6 * c.channels);
    std::vector<float> by_currents = by_spikes;  // in place
    conv_sums(pool, c, {maps.data()}, kernel.data(), sums.data());
    conv_input_grad(pool, c, cotangent.data(), kernel.data(), by_input.data());
    kernel_grad(pool, c, maps.data(), cotangent.data(), by_kernel.data());
    float* of_channels = by_channel.data();
    channel_moments(pool, c.images * c.h * c.w, c.channels, maps.data(), of_channels, of_channels + c.channels);
    lif_grad<false>(pool, {c.images / 2, 2, size, c.channels, tau.data(), threshold.data(), false, false}, Triangular{1}, false,
                    {maps.data(), factor.data(), offset.data(), nullptr, nullptr}, by_currents.data(), by_currents.data(),
                    {of_channels + 2 * c.channels, of_channels + 3 * c.channels, of_channels + 4 * c.channels,
                     of_channels + 5 * c.channels});
    std::vector<float> all;
    for (const auto* part : {&sums, &by_input, &by_kernel, &by_channel, &by_currents})
      all.insert(all.end(), part->begin(), part->end());
    differ += !before.empty() && std::memcmp(all.data(), before.data(), all.size() * sizeof(float)) != 0;
    before = all;
  }
  return differ;
}

// Max-pools of packed spikes.
static int check_max_pool(const Pool& pool, const Tiles& n) {
  const auto given = spikes_and(n.images * n.h * n.w * n.channels, 0.02);
  Packed spikes(n.images, n.h * n.w, n.channels), pooled(n.images, n.oh * n.ow, n.channels);
  spikes.write(given);
  max_pool(pool, n, spikes.spikes, pooled.spikes);
  const auto found = pooled.read();
  int wrong = 0;
  for (int64_t i = 0; i < n.images; ++i)
    for (int64_t y = 0; y < n.oh; ++y)
      for (int64_t x = 0; x < n.ow; ++x)
        for (int64_t c = 0; c < n.channels; ++c) {
          float largest = 0;
          for (int64_t k = 0; k < n.kh * n.kw; ++k) {
            const int64_t row = y * n.kh + k / n.kw, column = x * n.kw + k % n.kw;
            const float each = given[((i * n.h + row) * n.w + column) * n.channels + c];
            largest = each > largest || std::isnan(each) ? each : largest;
          }
          wrong += !same(found[((i * n.oh + y) * n.ow + x) * n.channels + c], largest);
        }
  return wrong;
}

// Neurons, moments and gradients of pools of maps h w channels, for reads and writes; their values are tested from Python.
static int run_over_channels(const Pool& pool, int64_t batch, int64_t steps, int64_t h, int64_t w, int64_t channels) {
  const int64_t size = h * w * channels, count = batch * steps * size;
  const auto x = numbers(count, 0.5), residual = numbers(count, 0.5), initial = numbers(batch * size, 0.5);
  const auto factor = numbers(channels, 1), offset = numbers(channels, 1), tau = numbers(channels, 1);
  const std::vector<float> threshold(channels, 1);
  std::vector<float> result(count), by_currents(count), by_factor(channels), by_offset(channels), mean(channels);
  std::vector<float> by_tau(channels), by_threshold(channels), var(channels);
  const Neurons n{batch, steps, size, channels, tau.data(), threshold.data(), true, false};
  const Currents currents{x.data(), factor.data(), offset.data(), residual.data(), initial.data()};
  lif<false, true>(pool, n, currents, result.data());
  lif<true, false>(pool, n, {x.data(), factor.data(), offset.data(), nullptr, nullptr}, result.data());
  const ByChannel by{by_factor.data(), by_offset.data(), by_tau.data(), by_threshold.data()};
  lif_grad<true>(pool, n, Sigmoid{4}, false, currents, x.data(), by_currents.data(), by);
  lif_grad<false>(pool, n, Triangular{1}, true, {x.data(), factor.data(), offset.data(), nullptr, nullptr}, x.data(),
                  by_currents.data(), {by_factor.data(), by_offset.data(), nullptr, nullptr});
  channel_moments(pool, batch * steps * h * w, channels, x.data(), mean.data(), var.data());
  const Tiles tiles{batch * steps, h, w, channels, h / 2, w / 2, 2, 2};
  max_pool_grad(pool, tiles, x.data(), residual.data(), result.data());
  int wrong = check_max_pool(pool, tiles);
  for (int64_t c = 0; c < channels && batch * steps > 0; ++c) {
    double sum = 0;
    for (int64_t i = c; i < count; i += channels) sum += x[i];
    wrong += std::abs(mean[c] - sum / (count / channels)) > 1e-4;
  }
  return wrong;
}

// Ranks of matrices whose rows come twice, against half as many; for reads and writes, their values are tested from Python.
static int check_ranks(const Pool& pool, int64_t count, int64_t rows, int64_t columns) {
  auto matrices = numbers(count * 2 * rows * columns, 0.5);
  std::vector<float> half(count * rows * columns), ranks(count, NAN), of_half(count, NAN);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t k = 0; k < rows * columns; ++k)
      half[i * rows * columns + k] = matrices[(2 * i + 1) * rows * columns + k] = matrices[2 * i * rows * columns + k];
  matrix_ranks(pool, count, 2 * rows, columns, matrices.data(), ranks.data());
  matrix_ranks(pool, count, rows, columns, half.data(), of_half.data());
  return ranks != of_half;
}

// What one item throws reaches the caller once all threads have left the loop, and no further items are begun.
static int fails(const Pool& pool, int64_t failing) {
  constexpr int64_t kItems = 1000000;
  std::atomic<int64_t> begun{0}, left{0};
  try {
    parallel_for(pool, kItems, [&](int64_t item, int) {
      ++begun;
      struct Leave {
        std::atomic<int64_t>& left;
        ~Leave() { ++left; }
      } leave{left};
      if (item == failing) throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
    return left != begun || begun == kItems;
  }
  return 1;
}

// A pool that cannot take a task.
static int fails_to_schedule() {
  int tasks = 0;
  const Pool full{4, [&](std::function<void()>) {
    if (++tasks == 2) throw std::bad_alloc();
  }};
  try {
    parallel_for(full, 1000, [](int64_t, int) {});
  } catch (const std::bad_alloc&) {
    return 0;
  }
  return 1;
}

// A thread that has run a short task takes another one, if that is given soon. No other threads may wait.
static int never_waits() {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    std::atomic<bool> ended{false}, done{false}, given{false};
    std::thread thread([&] {
      WaitingThreads::all().run([] {});
      ended = true;
    });
    std::function<void()> task = [&] { done = true; };
    while (!given && !ended) given = WaitingThreads::all().give(task);
    thread.join();
    if (given) return !done;
  }
  return 1;
}

int main() {
  std::vector<std::thread> threads;
  const Pool pool{4, [&](std::function<void()> task) { threads.emplace_back(std::move(task)); }};
  const Pool one{1, [](std::function<void()>) {}}, waiting = with_waiting(pool);
  int wrong = 0;
#ifdef __SANITIZE_THREAD__  // What threads share does not depend on the number of outputs, and watching them is slow.
  const std::vector<int64_t> wide{150}, narrow{1, 20};
#else
  const std::vector<int64_t> wide{40, 70, 100, 150}, narrow{1, 3, 8, 16, 20};
#endif
  for (double density : {0.05, 0.1, 1.0}) {
    //                  images h  w  in  oh ow out kh kw sy sx py px
    wrong += check(pool, {3, 6, 5, 3, 0, 0, 6, 3, 3, 1, 1, 1, 1}, density);
    wrong += check(pool, {2, 7, 6, 5, 0, 0, 9, 3, 2, 2, 1, 1, 0}, density);
    wrong += check(pool, {2, 5, 3, 2, 0, 0, 3, 7, 4, 2, 1, 3, 2}, density);
    wrong += check(pool, {2, 7, 6, 2, 0, 0, 17, 1, 1, 2, 3, 0, 0}, density);
    // More inputs than a block has; outputs that fill up their last block, by vectors of 4, 8 and 16.
    for (int64_t outputs : wide) {
      wrong += check(pool, {1, 2, 2, 130, 0, 0, outputs, 3, 3, 1, 1, 1, 1}, density);
      wrong += check(pool, {1, 2, 3, 130, 0, 0, outputs, 1, 1, 1, 1, 0, 0}, density);
      wrong += check(pool, {1, 3, 4, outputs, 0, 0, 130, 3, 3, 2, 2, 1, 1}, density);  // phases of one tap
    }
    wrong += check(pool, {1, 2, 2, 70, 0, 0, 130, 3, 3, 1, 1, 1, 1}, density);
    // Few outputs at stride 1, with more padding than taps, one pixel, one row, and more inputs than a block has.
    for (int64_t outputs : narrow) {
      wrong += check(pool, {2, 1, 1, 5, 0, 0, outputs, 3, 3, 1, 1, 1, 1}, density);
      wrong += check(pool, {2, 1, 7, 70, 0, 0, outputs, 3, 3, 1, 1, 4, 5}, density);
      wrong += check(pool, {3, 6, 5, 129, 0, 0, outputs, 5, 5, 1, 1, 2, 2}, density);
      wrong += check(pool, {2, 4, 5, 9, 0, 0, outputs, 1, 1, 1, 1, 0, 0}, density);
    }
    // So many small maps that several are worked on at once.
    wrong += check(pool, {35, 2, 2, 5, 0, 0, 9, 3, 3, 1, 1, 1, 1}, density);
    wrong += check(pool, {16, 3, 2, 130, 0, 0, 20, 3, 3, 1, 1, 1, 1}, density);
    wrong += check(pool, {21, 5, 4, 7, 0, 0, 12, 3, 2, 2, 1, 1, 0}, density);
    wrong += check(pool, {16, 1, 7, 70, 0, 0, 3, 3, 3, 1, 1, 4, 5}, density);
    wrong += check(pool, {16, 0, 3, 2, 0, 0, 4, 3, 3, 1, 2, 2, 1}, density);
    wrong += check(pool, {16, 3, 0, 2, 0, 0, 4, 1, 1, 1, 1, 0, 1}, density);
    wrong += check(pool, {112, 12, 12, 2, 0, 0, 33, 3, 3, 1, 1, 1, 1}, density);  // several groups of images
    // So many positions that the sums of spikes are looked up.
    wrong += check(pool, {40, 8, 7, 9, 0, 0, 20, 3, 3, 1, 1, 1, 1}, density, true);
    wrong += check(pool, {9, 33, 31, 6, 0, 0, 7, 5, 4, 2, 2, 2, 1}, density, true);
    wrong += check(pool, {3, 30, 29, 5, 0, 0, 3, 2, 2, 1, 1, 3, 4}, density, true);
    wrong += check(pool, {16, 8, 8, 64, 0, 0, 128, 1, 1, 1, 1, 1, 1}, density, true);
    wrong += check(pool, {16, 20, 20, 64, 0, 0, 40, 1, 1, 1, 1, 1, 1}, density, true);
    // The same by rows that have no zeros between them, of several images.
    wrong += check(pool, {32, 7, 7, 9, 0, 0, 20, 5, 1, 1, 1, 2, 0}, density, true);
    wrong += check(pool, {48, 9, 7, 16, 0, 0, 24, 3, 1, 1, 1, 0, 0}, density, true);
    wrong += check(pool, {64, 4, 7, 16, 0, 0, 16, 3, 1, 1, 1, 1, 0}, density, true);
    wrong += check(pool, {32, 7, 7, 12, 0, 0, 16, 3, 3, 1, 1, 1, 2}, density, true);
    wrong += check(pool, {40, 10, 14, 12, 0, 0, 16, 4, 2, 2, 2, 1, 0}, density, true);
    wrong += check(pool, {40, 9, 13, 16, 0, 0, 16, 3, 2, 1, 2, 0, 1}, density, true);
    wrong += check(pool, {16, 6, 6, 64, 0, 0, 128, 2, 2, 1, 1, 3, 2}, density, true);
    wrong += check(pool, {2, 48, 48, 3, 0, 0, 8, 16, 16, 16, 16, 0, 0}, density);
    wrong += check(pool, {3, 40, 60, 3, 0, 0, 9, 1, 1, 2, 3, 0, 0}, density, true);
    wrong += check(pool, {2, 40, 50, 17, 0, 0, 18, 2, 1, 3, 2, 0, 1}, density, true);
    wrong += check(pool, {1, 1, 1200, 4, 0, 0, 8, 1, 130, 1, 1, 0, 0}, density, true);
    wrong += check(pool, {2000, 4, 4, 4, 0, 0, 8, 1, 1, 7, 9, 0, 0}, density, true);
    // Weights of four levels, so that sums with signs are looked up.
    wrong += check(pool, {16, 9, 8, 17, 0, 0, 6, 3, 3, 1, 1, 1, 1}, density, false, true);
    wrong += check(pool, {9, 13, 7, 131, 0, 0, 37, 2, 3, 1, 1, 4, 5}, density, false, true);
    wrong += check(pool, {64, 5, 4, 30, 0, 0, 40, 1, 1, 1, 1, 0, 0}, density, false, true);
    wrong += check(pool, {2, 3, 3, 4, 0, 0, 0, 3, 3, 1, 1, 1, 1}, density);
    wrong += check(pool, {2, 3, 3, 0, 0, 0, 4, 3, 3, 1, 1, 1, 1}, density);
    wrong += check(pool, {2, 0, 3, 2, 0, 0, 4, 3, 3, 1, 2, 2, 1}, density);  // maps of padding only
    wrong += check(pool, {2, 3, 0, 2, 0, 0, 4, 1, 1, 1, 1, 0, 1}, density);
  }
  // Rows and bands of an example, groups of them, no inputs, strides, several blocks; more images of an example than a group
  // has. Of few examples for the threads, convolutions and neurons run one after the other.
  for (const Pool& some : {one, pool}) {
    wrong += check_neurons(some, {0, 33, 31, 6, 0, 0, 7, 3, 3, 1, 1, 1, 1}, 1, 2, true);
    wrong += check_neurons(some, {0, 33, 31, 6, 0, 0, 7, 3, 3, 1, 1, 1, 1}, 5, 2, true);
    wrong += check_neurons(some, {0, 9, 8, 17, 0, 0, 20, 3, 3, 2, 2, 1, 1}, 21, 3, true);
    wrong += check_neurons(some, {0, 5, 4, 131, 0, 0, 130, 3, 2, 1, 1, 1, 0}, 8, 2, true);
    wrong += check_neurons(some, {0, 3, 3, 0, 0, 0, 4, 3, 3, 1, 1, 1, 1}, 4, 2, true);
    wrong += check_neurons(some, {0, 8, 8, 16, 0, 0, 16, 3, 3, 1, 1, 1, 1}, 4, 8, false);
    wrong += check_neurons(some, {0, 8, 8, 16, 0, 0, 16, 3, 3, 1, 1, 1, 1}, 5, 4, false);
    wrong += check_neurons(some, {0, 8, 8, 16, 0, 0, 16, 3, 3, 1, 1, 1, 1}, 17, 9, false);
    wrong += check_neurons(some, {0, 5, 4, 9, 0, 0, 3, 3, 3, 1, 1, 1, 1}, 8, 10, true);
    wrong += check_neurons(some, {0, 8, 8, 16, 0, 0, 24, 3, 3, 1, 1, 1, 1}, 33, 2, true, 0.0005);
    wrong += check_neurons(some, {0, 16, 15, 12, 0, 0, 8, 3, 3, 2, 1, 1, 1}, 17, 3, true, 0.0005);
    wrong += check_neurons(some, {0, 33, 31, 6, 0, 0, 7, 3, 3, 1, 1, 1, 1}, 1, 2, true, 0.0005);
    wrong += check_neurons(some, {0, 33, 31, 131, 0, 0, 7, 3, 3, 1, 1, 1, 1}, 1, 2, true, 0.00005);
  }
  for (int64_t channels : {1, 3, 16, 70, 129}) {
    wrong += run_over_channels(pool, 2, 3, 3, 5, channels);
    wrong += run_over_channels(pool, 1, 1, 1, 1, channels);
    wrong += run_over_channels(pool, 3, 2, 1, 7, channels);
  }
  wrong += run_over_channels(pool, 0, 2, 2, 2, 3);
  wrong += run_over_channels(pool, 0, 2, 2, 2, 129);
  wrong += run_over_channels(pool, 2, 2, 2, 2, 0);
  wrong += run_over_channels(pool, 2, 40, 20, 20, 5);
  for (int64_t side : {1, 4, 9, 20})
    for (int64_t columns : {1, 8, 33, 50}) wrong += check_ranks(pool, 70, side, columns);
  wrong += check_ranks(pool, 0, 4, 4);
  for (int64_t channels : {1, 7, 8, 16, 33, 40}) wrong += check_packing(3, 10, channels) + check_packing(2, 1, channels);
  wrong += check_packing(0, 4, 8) + check_packing(2, 3, 0);
#ifndef __SANITIZE_THREAD__
  wrong += check(pool, {9, 16, 15, 130, 0, 0, 100, 3, 3, 1, 1, 1, 1}, 0.5, true);
#endif
  const Pool three{3, pool.schedule};
  wrong += differences({one, three, pool, waiting}, {36, 4, 3, 9, 0, 0, 12, 3, 3, 1, 1, 1, 1});
  wrong += differences({one, three, pool, waiting}, {20, 7, 9, 17, 0, 0, 5, 3, 3, 2, 2, 1, 1});
  wrong += differences({one, three, pool, waiting}, {6, 20, 20, 4, 0, 0, 70, 3, 3, 1, 1, 1, 1});
  for (int64_t failing : {0, 500, 999}) wrong += fails(pool, failing) + fails(waiting, failing);
  for (int64_t i = 0; i < 200; ++i) wrong += run_over_channels(waiting, 2, 1, 3, 3, 1 + i % 3);  // one short loop after another
  wrong += fails_to_schedule();
  for (std::thread& thread : threads) thread.join();
  wrong += never_waits();
  if (wrong) std::printf("%d numbers are wrong\n", wrong);
  return wrong != 0;
}
