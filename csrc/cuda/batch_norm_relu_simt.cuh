// BatchNorm with residual and clamp: one pass for the statistics, one for all the rest. Sums have one fixed order.
// Squares are summed of the distance to the channel's first element, so that a mean far from zero does not drown the
// variance.
#pragma once
#include <algorithm>

#include "../batch_norm_relu.h"
#include "channel_sums.cuh"
#include "vector_access.h"

namespace pyserve::batch_norm {

constexpr int32_t kThreads = 256;

// How a pass is cut: a thread takes `count` neighbouring channels, a block up to 32 times as many and a chunk of rows.
struct Cut {
  int64_t rows, channels, chunk, chunks, tiles;
  Divisor vectors;  // of a block

  // All rows at once, of so many vectors.
  static Cut slice(const BatchNormProblem& p, int64_t count, int64_t vectors) {
    Cut cut(p, count);
    cut.vectors = Divisor(vectors);
    cut.tiles = ((p.channels + count - 1) / count + vectors - 1) / vectors;
    cut.chunk = p.rows, cut.chunks = 1;
    return cut;
  }

  Cut(const BatchNormProblem& p, int64_t count) : rows(p.rows), channels(p.channels) {
    const int64_t channel_vectors = (p.channels + count - 1) / count;
    vectors = Divisor(std::min<int64_t>(32, channel_vectors));
    tiles = (channel_vectors + vectors.value - 1) / vectors.value;
    // At least 16 rows a thread, and at most about 1024 blocks: a function of the problem alone.
    const int64_t most = std::max<int64_t>(1, 1024 / tiles), lines = kThreads / vectors.value;
    chunk = std::max<int64_t>(16 * lines, (p.rows + most - 1) / most);
    chunks = (p.rows + chunk - 1) / chunk;
  }
};

// Where a thread of a block works.
struct Place {
  int32_t line, lines, vector, vectors;
  int64_t chunk, channel, begin, end;

  template <int32_t count>
  PYSERVE_DEVICE static Place of(const Cut& cut) {
    Place at;
    at.vectors = static_cast<int32_t>(cut.vectors.value);
    at.line = quotient(device::thread_index(), cut.vectors);
    at.lines = kThreads / at.vectors;
    at.vector = device::thread_index() - at.line * at.vectors;
    at.chunk = device::block_index() / cut.tiles;
    at.channel = (device::block_index() % cut.tiles * at.vectors + at.vector) * count;
    at.begin = at.chunk * cut.chunk;
    at.end = at.begin + cut.chunk < cut.rows ? at.begin + cut.chunk : cut.rows;
    return at;
  }
};

// Adds the two sums of every channel over the block's lines and writes them to parts [chunk][2][channels].
template <class Acc, int32_t count>
PYSERVE_DEVICE void write_sums(const Place& at, const Cut& cut, const Acc (&first)[count], const Acc (&second)[count],
                               Acc* parts) {
  Acc* const shared = reinterpret_cast<Acc*>(device::shared_memory());  // [lines][channels of the block]
  const int32_t width = at.vectors * count, thread = device::thread_index();
  const int64_t channel = device::block_index() % cut.tiles * width + thread;
#pragma unroll
  for (int32_t which = 0; which < 2; ++which) {
#pragma unroll
    for (int32_t c = 0; c < count; ++c)
      if (at.line < at.lines)
        device::store_shared(shared + at.line * width + at.vector * count + c, which == 0 ? first[c] : second[c]);
    device::block_barrier();
    if (thread < width && channel < cut.channels) {
      Acc sum = 0;
      for (int32_t line = 0; line < at.lines; ++line) sum += device::load_shared(shared + line * width + thread);
      device::store(parts + (at.chunk * 2 + which) * cut.channels + channel, sum);
    }
    device::block_barrier();
  }
}

// ------------------------------------------------------------ forward

template <class T, int32_t count>
PYSERVE_KERNEL(kThreads, 3)
statistics_kernel(const T* x, PYSERVE_PARAMETER Cut cut, Accumulator<T>* parts) {
  using Acc = Accumulator<T>;
  const Place at = Place::of<count>(cut);
  Acc shift[count] = {}, sum[count] = {}, square[count] = {};
  if (at.line < at.lines && at.channel < cut.channels) {
    read(x, at.channel, cut.channels, true, shift);
    for (int64_t row = at.begin + at.line; row < at.end; row += at.lines) {
      Acc values[count];
      read(x + row * cut.channels, at.channel, cut.channels, true, values);
#pragma unroll
      for (int32_t c = 0; c < count; ++c) {
        const Acc distance = values[c] - shift[c];
        sum[c] += distance;
        square[c] += distance * distance;
      }
    }
  }
  write_sums(at, cut, sum, square, parts);
}

// Mean and variance of the parts: sums of the distances to the channel's first element.
template <class T>
struct FinishStatistics {
  int64_t channels, rows, parts, chunks;
  Divisor tiles;
  const T* x;
  const Accumulator<T>* from;
  Accumulator<T>*mean, *var;

  PYSERVE_DEVICE int64_t begin(int64_t) const { return 0; }
  PYSERVE_DEVICE int64_t end(int64_t) const { return parts; }
  PYSERVE_DEVICE void add(int64_t, int64_t part, int64_t channel, double& sum, double& squares) const {
    sum += device::load(from + part * 2 * channels + channel);
    squares += device::load(from + (part * 2 + 1) * channels + channel);
  }
  PYSERVE_DEVICE void write(int64_t, int64_t channel, double sum, double squares) const {
    const channels::Spread spread = channels::Spread::of(sum, squares, static_cast<double>(rows));
    const double shift = static_cast<double>(widen(device::load(x + channel)));
    device::store(mean + channel, static_cast<Accumulator<T>>(shift + spread.distance));
    device::store(var + channel, static_cast<Accumulator<T>>(spread.variance));
  }
};

// A thread's channels: (x - mean) · scale + bias is their normalised value, scale = weight / √(var + eps).
template <class Acc, int32_t count>
struct Line {
  Acc mean[count] = {}, scale[count] = {}, bias[count] = {};

  template <class Args>
  PYSERVE_DEVICE void read_from(const Args& args, int64_t channel, int64_t channels, double eps) {
    read(static_cast<const Acc*>(args.mean), channel, channels, true, mean);
    read_inverse(args.var, channel, channels, eps, scale);
    Acc weight[count];
    if (args.weight != nullptr) {
      read(static_cast<const Acc*>(args.weight), channel, channels, true, weight);
#pragma unroll
      for (int32_t c = 0; c < count; ++c) scale[c] *= weight[c];
    }
    if (args.bias != nullptr) read(static_cast<const Acc*>(args.bias), channel, channels, true, bias);
  }

  PYSERVE_DEVICE static void read_inverse(const void* var, int64_t channel, int64_t channels, double eps,
                                          Acc (&inverse)[count]) {
    read(static_cast<const Acc*>(var), channel, channels, true, inverse);
#pragma unroll
    for (int32_t c = 0; c < count; ++c)
      inverse[c] = static_cast<Acc>(device::inverse_square_root(static_cast<double>(inverse[c]) + eps));
  }

  PYSERVE_DEVICE Acc at(Acc x, int32_t c) const { return (x - mean[c]) * scale[c] + bias[c]; }
};

template <class T, int32_t count>
PYSERVE_KERNEL(kThreads, 4)
apply_kernel(PYSERVE_PARAMETER BatchNormReluArgs args, PYSERVE_PARAMETER Cut cut, double eps, double lo, double hi) {
  using Acc = Accumulator<T>;
  const Place at = Place::of<count>(cut);
  if (at.line >= at.lines || at.channel >= cut.channels) return;
  Line<Acc, count> line;
  line.read_from(args, at.channel, cut.channels, eps);
  for (int64_t row = at.begin + at.line; row < at.end; row += at.lines) {
    const int64_t start = row * cut.channels, i = start + at.channel, end = start + cut.channels;
    Acc values[count], residual[count] = {};
    read(static_cast<const T*>(args.x), i, end, true, values);
    if (args.residual != nullptr) read(static_cast<const T*>(args.residual), i, end, true, residual);
#pragma unroll
    for (int32_t c = 0; c < count; ++c) {
      const Acc value = line.at(values[c], c) + residual[c];
      values[c] = clamp(value, static_cast<Acc>(lo), static_cast<Acc>(hi));
    }
    write(static_cast<T*>(args.y), i, end, true, values);
  }
}

// ------------------------------------------------------------ launch

template <class T>
int32_t shared_bytes(int32_t count) {
  return kThreads * count * static_cast<int32_t>(sizeof(Accumulator<T>));
}

template <class T, int32_t count>
void forward(const BatchNormProblem& p, const BatchNormReluArgs& args, const Queue& queue) {
  using Acc = Accumulator<T>;
  const Cut cut(p, count);
  const T* x = static_cast<const T*>(args.x);
  if (p.training) {
    Acc* parts = queue.scratch<Acc>(cut.chunks * 2 * p.channels);
    device::launch(statistics_kernel<T, count>, cut.tiles * cut.chunks, kThreads, shared_bytes<T>(count), queue, x, cut,
                   parts);
    channels::finish(FinishStatistics<T>{p.channels, p.rows, cut.chunks, 1, channels::tiles_of(p.channels), x, parts,
                                         static_cast<Acc*>(args.mean), static_cast<Acc*>(args.var)},
                     queue);
  }
  if (args.y == nullptr) return;
  device::launch(apply_kernel<T, count>, cut.tiles * cut.chunks, kThreads, 0, queue, args, cut, p.eps, p.clamp.lo,
                 p.clamp.hi);
}

// Calls f with the number of channels a thread takes: 16 bytes of them where all tensors are aligned so.
template <class T, class F>
void with_vector(const BatchNormProblem& p, bool all_aligned, F&& f) {
  if (all_aligned && p.channels % kWide<T> == 0) return f(std::integral_constant<int32_t, kWide<T>>{});
  f(std::integral_constant<int32_t, 1>{});
}

}  // namespace pyserve::batch_norm
