// BatchNorm with residual and clamp: one pass for the statistics, one for all the rest; backward likewise. Sums have
// one fixed order. Squares are summed of the distance to the channel's first element, so that a mean far from zero does
// not drown the variance.
#pragma once
#include <algorithm>

#include "../batch_norm_relu.h"
#include "divisor.h"
#include "vector_access.h"

namespace pyserve::batch_norm {

constexpr int32_t kThreads = 256;

// How a pass is cut: a thread takes `count` neighbouring channels, a block up to 32 times as many and a chunk of rows.
struct Cut {
  int64_t rows, channels, chunk, chunks, tiles;
  Divisor vectors;  // of a block

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

// Mean and variance of the parts, in the order of the chunks.
template <class T>
PYSERVE_KERNEL(kThreads, 4)
finish_kernel(const T* x, PYSERVE_PARAMETER Cut cut, const Accumulator<T>* parts, Accumulator<T>* mean,
              Accumulator<T>* var) {
  const int64_t channel = device::block_index() * kThreads + device::thread_index();
  if (channel >= cut.channels) return;
  double sum = 0, square = 0;
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
    sum += device::load(parts + chunk * 2 * cut.channels + channel);
    square += device::load(parts + (chunk * 2 + 1) * cut.channels + channel);
  }
  const double distance = sum / static_cast<double>(cut.rows), variance = square / static_cast<double>(cut.rows);
  const double corrected = variance - distance * distance;
  const double shift = static_cast<double>(widen(device::load(x + channel)));
  device::store(mean + channel, static_cast<Accumulator<T>>(shift + distance));
  // Rounding may leave less than nothing; NaN stays NaN.
  device::store(var + channel, static_cast<Accumulator<T>>(corrected < 0 ? 0.0 : corrected));
}

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

// ------------------------------------------------------------ backward

// The gradient that the activation lets through, and x. Without an output the mask is that of the value that the
// forward pass rounded and wrote.
template <class T, int32_t count>
PYSERVE_DEVICE void read_masked(const BatchNormReluBackwardArgs& args, const Line<Accumulator<T>, count>& line,
                                int64_t i, int64_t end, double lo, double hi, Accumulator<T> (&g)[count],
                                Accumulator<T> (&x)[count]) {
  using Acc = Accumulator<T>;
  read(static_cast<const T*>(args.grad), i, end, true, g);
  read(static_cast<const T*>(args.x), i, end, true, x);
  Acc seen[count];
  if (args.y != nullptr) read(static_cast<const T*>(args.y), i, end, true, seen);
#pragma unroll
  for (int32_t c = 0; c < count; ++c) {
    const Acc value = args.y != nullptr ? seen[c] : widen(narrow<T>(line.at(x[c], c)));
    if (value <= static_cast<Acc>(lo) || value >= static_cast<Acc>(hi)) g[c] = 0;
  }
}

// Σ g and Σ g · (x - mean) of every channel.
template <class T, int32_t count>
PYSERVE_KERNEL(kThreads, 2)
gradient_sums_kernel(PYSERVE_PARAMETER BatchNormReluBackwardArgs args, PYSERVE_PARAMETER Cut cut, double eps, double lo,
                     double hi, Accumulator<T>* parts) {
  using Acc = Accumulator<T>;
  const Place at = Place::of<count>(cut);
  Acc sum[count] = {}, product[count] = {};
  if (at.line < at.lines && at.channel < cut.channels) {
    Line<Acc, count> line;
    line.read_from(args, at.channel, cut.channels, eps);
    for (int64_t row = at.begin + at.line; row < at.end; row += at.lines) {
      const int64_t i = row * cut.channels + at.channel, end = (row + 1) * cut.channels;
      Acc g[count], values[count];
      read_masked<T>(args, line, i, end, lo, hi, g, values);
#pragma unroll
      for (int32_t c = 0; c < count; ++c) {
        sum[c] += g[c];
        product[c] += g[c] * (values[c] - line.mean[c]);
      }
    }
  }
  write_sums(at, cut, sum, product, parts);
}

// dbias and dweight of the parts, in the order of the chunks.
template <class Acc>
PYSERVE_KERNEL(kThreads, 4)
finish_gradients_kernel(PYSERVE_PARAMETER Cut cut, double eps, const Acc* var, const Acc* parts, Acc* dbias,
                        Acc* dweight) {
  const int64_t channel = device::block_index() * kThreads + device::thread_index();
  if (channel >= cut.channels) return;
  double sum = 0, product = 0;
  for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
    sum += device::load(parts + chunk * 2 * cut.channels + channel);
    product += device::load(parts + (chunk * 2 + 1) * cut.channels + channel);
  }
  const double inverse = device::inverse_square_root(static_cast<double>(device::load(var + channel)) + eps);
  device::store(dbias + channel, static_cast<Acc>(sum));
  device::store(dweight + channel, static_cast<Acc>(product * inverse));
}

// dx = scale · (g - (dbias + (x - mean) / √(var + eps) · dweight) / rows); without the sums where the statistics were
// given.
template <class T, int32_t count>
PYSERVE_KERNEL(kThreads, 2)
gradient_kernel(PYSERVE_PARAMETER BatchNormReluBackwardArgs args, PYSERVE_PARAMETER Cut cut, double eps, double lo,
                double hi, bool training) {
  using Acc = Accumulator<T>;
  const Place at = Place::of<count>(cut);
  if (at.line >= at.lines || at.channel >= cut.channels) return;
  Acc inverse[count], sum[count], product[count];
  Line<Acc, count> line;
  line.read_from(args, at.channel, cut.channels, eps);
  Line<Acc, count>::read_inverse(args.var, at.channel, cut.channels, eps, inverse);
  read(static_cast<const Acc*>(args.dbias), at.channel, cut.channels, true, sum);
  read(static_cast<const Acc*>(args.dweight), at.channel, cut.channels, true, product);
  const Acc share = training ? Acc(1) / static_cast<Acc>(cut.rows) : Acc(0);
#pragma unroll
  for (int32_t c = 0; c < count; ++c) {
    sum[c] *= share;
    product[c] *= share * inverse[c];
  }
  for (int64_t row = at.begin + at.line; row < at.end; row += at.lines) {
    const int64_t i = row * cut.channels + at.channel, end = (row + 1) * cut.channels;
    Acc g[count], values[count];
    read_masked<T>(args, line, i, end, lo, hi, g, values);
    if (args.dresidual != nullptr) write(static_cast<T*>(args.dresidual), i, end, true, g);
#pragma unroll
    for (int32_t c = 0; c < count; ++c)
      values[c] = line.scale[c] * (g[c] - sum[c] - (values[c] - line.mean[c]) * product[c]);
    if (args.dx != nullptr) write(static_cast<T*>(args.dx), i, end, true, values);
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
    device::launch(finish_kernel<T>, (p.channels + kThreads - 1) / kThreads, kThreads, 0, queue, x, cut, parts,
                   static_cast<Acc*>(args.mean), static_cast<Acc*>(args.var));
  }
  device::launch(apply_kernel<T, count>, cut.tiles * cut.chunks, kThreads, 0, queue, args, cut, p.eps, p.clamp.lo,
                 p.clamp.hi);
}

template <class T, int32_t count>
void backward(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args, const Queue& queue) {
  using Acc = Accumulator<T>;
  const Cut cut(p, count);
  const double lo = p.clamp.mask_lo(), hi = p.clamp.mask_hi();
  Acc* parts = queue.scratch<Acc>(cut.chunks * 2 * p.channels);
  BatchNormReluBackwardArgs all = args;  // the sums are needed for dx also where the caller does not want them
  if (all.dweight == nullptr) all.dweight = queue.scratch<Acc>(p.channels);
  if (all.dbias == nullptr) all.dbias = queue.scratch<Acc>(p.channels);
  device::launch(gradient_sums_kernel<T, count>, cut.tiles * cut.chunks, kThreads, shared_bytes<T>(count), queue, all,
                 cut, p.eps, lo, hi, parts);
  device::launch(finish_gradients_kernel<Acc>, (p.channels + kThreads - 1) / kThreads, kThreads, 0, queue, cut, p.eps,
                 static_cast<const Acc*>(all.var), parts, static_cast<Acc*>(all.dbias), static_cast<Acc*>(all.dweight));
  if (args.dx == nullptr && args.dresidual == nullptr) return;
  device::launch(gradient_kernel<T, count>, cut.tiles * cut.chunks, kThreads, 0, queue, all, cut, p.eps, lo, hi,
                 p.training);
}

// Calls f with the number of channels a thread takes: 16 bytes of them where all tensors are aligned so.
template <class T, class F>
void with_vector(const BatchNormProblem& p, bool all_aligned, F&& f) {
  if (all_aligned && p.channels % kWide<T> == 0) return f(std::integral_constant<int32_t, kWide<T>>{});
  f(std::integral_constant<int32_t, 1>{});
}

}  // namespace pyserve::batch_norm
