// The end of every sum over all rows of a channel: parts that blocks have left in scratch memory, added in a fixed
// order by many threads a channel. Sums are float64 here: there are few of them.
#pragma once
#include "divisor.h"
#include "element.h"
#include "queue.h"

namespace pyserve::channels {

constexpr int32_t kThreads = 256, kWidth = 8, kLines = kThreads / kWidth;  // of a block: channels, threads for each

// What is added is the `Finish`:
//
//   channels, tiles, chunks     tiles of kWidth channels; every chunk of the parts is summed by itself
//   begin(chunk), end(chunk)    which parts it has
//   add(chunk, part, channel, first, second)      two sums at once
//   write(chunk, channel, first, second)
template <class Finish>
PYSERVE_KERNEL(kThreads, 2)
finish_kernel(PYSERVE_PARAMETER Finish finish) {
  const int32_t line = device::thread_index() / kWidth, column = device::thread_index() % kWidth;
  const int64_t chunk = quotient(device::block_index(), finish.tiles);
  const int64_t channel = (device::block_index() - chunk * finish.tiles.value) * kWidth + column;
  double first = 0, second = 0;
  if (channel < finish.channels) {
    const int64_t end = finish.end(chunk);
#pragma unroll 4
    for (int64_t part = finish.begin(chunk) + line; part < end; part += kLines)
      finish.add(chunk, part, channel, first, second);
  }
  double* const sums = reinterpret_cast<double*>(device::shared_memory());  // [2][kLines][kWidth]
  device::store_shared(sums + device::thread_index(), first);
  device::store_shared(sums + kThreads + device::thread_index(), second);
  device::block_barrier();
  if (line != 0 || channel >= finish.channels) return;
  first = second = 0;
  for (int32_t i = column; i < kThreads; i += kWidth) {
    first += device::load_shared(sums + i);
    second += device::load_shared(sums + kThreads + i);
  }
  finish.write(chunk, channel, first, second);
}

template <class Finish>
void finish(const Finish& all, const Queue& queue) {
  device::launch(finish_kernel<Finish>, all.tiles.value * all.chunks, kThreads,
                 2 * kThreads * static_cast<int32_t>(sizeof(double)), queue, all);
}

inline Divisor tiles_of(int64_t channels) { return Divisor((channels + kWidth - 1) / kWidth); }

// Mean and variance from the sums of the distances to a number near the mean, and of their squares.
struct Spread {
  double distance, variance;

  PYSERVE_DEVICE static Spread of(double sum, double squares, double count) {
    const double distance = sum / count, variance = squares / count - distance * distance;
    return {distance, variance < 0 ? 0.0 : variance};  // rounding may leave less than nothing; NaN stays NaN
  }
};

// ------------------------------------------------------------ mean and variance of parts

// A part is the mean of `rows_of_part` rows (the last one of fewer) and their squared distances from it:
// parts [part][2][channels]. Parts are merged as Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
// for computing sample variances", 1979, around the mean of a chunk's first part.
struct MergeMoments {
  int64_t channels, rows, rows_of_part, parts, chunks;
  Divisor tiles;
  const float* from;
  float *mean, *var;  // of the last merger; of the others parts again, [chunk][2][channels]

  static constexpr int64_t kMost = 512;  // parts that one chunk has

  PYSERVE_DEVICE int64_t begin(int64_t chunk) const { return chunk * kMost; }
  PYSERVE_DEVICE int64_t end(int64_t chunk) const {
    return begin(chunk) + kMost < parts ? begin(chunk) + kMost : parts;
  }
  PYSERVE_DEVICE double count(int64_t part, int64_t several) const {
    const int64_t left = rows - part * rows_of_part, most = several * rows_of_part;
    return static_cast<double>(left < most ? left : most);
  }
  PYSERVE_DEVICE double mean_of(int64_t part, int64_t channel) const {
    return static_cast<double>(device::load(from + part * 2 * channels + channel));
  }
  PYSERVE_DEVICE void add(int64_t chunk, int64_t part, int64_t channel, double& first, double& second) const {
    const double distance = mean_of(part, channel) - mean_of(begin(chunk), channel), n = count(part, 1);
    first += n * distance;
    second += static_cast<double>(device::load(from + (part * 2 + 1) * channels + channel)) + n * distance * distance;
  }
  PYSERVE_DEVICE void write(int64_t chunk, int64_t channel, double first, double second) const {
    const double n = count(begin(chunk), kMost);
    const Spread spread = Spread::of(first, second, n);
    device::store(mean + chunk * 2 * channels + channel,
                  static_cast<float>(mean_of(begin(chunk), channel) + spread.distance));
    device::store(var + chunk * 2 * channels + channel,
                  static_cast<float>(chunks == 1 ? spread.variance : spread.variance * n));
  }
};

// mean and biased variance [channels] of `rows` rows.
inline void merge_moments(const float* parts, int64_t count, int64_t rows_of_part, int64_t rows, int64_t channels,
                          float* mean, float* var, const Queue& queue) {
  for (;;) {
    const int64_t chunks = (count + MergeMoments::kMost - 1) / MergeMoments::kMost;
    float* const merged = chunks == 1 ? nullptr : queue.scratch<float>(chunks * 2 * channels);
    finish(MergeMoments{channels, rows, rows_of_part, count, chunks, tiles_of(channels), parts, merged ? merged : mean,
                        merged ? merged + channels : var},
           queue);
    if (chunks == 1) return;
    parts = merged, count = chunks, rows_of_part *= MergeMoments::kMost;
  }
}

}  // namespace pyserve::channels
