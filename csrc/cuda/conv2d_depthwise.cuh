// The depthwise convolution (one filter per channel) and its gradients: no products worth a tensor core, all memory
// traffic. A thread computes neighbouring channels (16 bytes of them) of a strip of output columns, whose input columns
// it reads once per row of taps.
#pragma once
#include <algorithm>

#include "conv2d_operands.h"
#include "conv2d_products.h"
#include "vector_access.h"

namespace pyserve::depthwise {

constexpr int32_t kThreads = 256;

// Columns of a strip: what the input columns of one leave of the registers.
template <int32_t step>
constexpr int32_t kStripOf = 4 / step;

// Positions gather through taps (PatchGeometry), forward and for the gradient of x alike. Taps run to the right and
// down: where the gradient's run the other way, they are turned around, with the weights.
struct Gather {
  PatchGeometry patches;
  int64_t channels, taps_h;
  int64_t weight_start, weight_channel, weight_h, weight_w;  // where tap (r, s) of a channel lies
  int64_t out_image, out_h, out_w, out_start;                // where position (n, i, j) lies, in positions
  Divisor strips, vectors;                                   // of a row; of the channels of a block
  int64_t vector_tiles, all_strips;

  Gather(const PatchGeometry& geometry, int64_t channels, int64_t taps_h, int64_t taps_w)
      : patches(geometry), channels(channels), taps_h(taps_h) {
    patches.tap_channels = Divisor(1), patches.taps_w = Divisor(taps_w);
  }
  // Cuts the work into strips of `strip` columns and blocks of channels, `count` channels a thread.
  void cut(int32_t count, int32_t strip, int64_t images) {
    const int64_t channel_vectors = channels / count;
    vectors = Divisor(std::min<int64_t>(32, channel_vectors));
    vector_tiles = (channel_vectors + vectors.value - 1) / vectors.value;
    strips = Divisor((patches.rows_w.value + strip - 1) / strip);
    all_strips = images * patches.rows_h.value * strips.value;
  }
  // Turns an axis around whose taps run backwards.
  void turn() {
    if (patches.tap_h < 0 && taps_h > 0) {
      patches.start_h += patches.tap_h * (taps_h - 1), patches.tap_h = -patches.tap_h;
      weight_start += weight_h * (taps_h - 1), weight_h = -weight_h;
    }
    const int64_t taps_w = patches.taps_w.value;
    if (patches.tap_w < 0 && taps_h > 0) {
      patches.start_w += patches.tap_w * (taps_w - 1), patches.tap_w = -patches.tap_w;
      weight_start += weight_w * (taps_w - 1), weight_w = -weight_w;
    }
  }
};

struct Epilogue {
  const void* bias;
  const void* residual;
  double lo, hi;
};

// sums += the products of a row of taps; kTaps taps one column apart, kStep columns from position to position.
template <class T, int32_t count, int32_t kTaps, int32_t kStep, int32_t kStrip>
PYSERVE_DEVICE void add_row(const T* row, int64_t channels, int32_t w, int32_t width, const Accumulator<T>* weights,
                            int32_t weight_pitch, Accumulator<T> (&sums)[kStrip][count]) {
  using Columns = device::Vector<T, count>;  // as they are in memory: half the registers of 16-bit elements
  Columns columns[(kStrip - 1) * kStep + kTaps];
#pragma unroll
  for (int32_t i = 0; i < (kStrip - 1) * kStep + kTaps; ++i) {
    const bool inside = w + i >= 0 && w + i < width;
    columns[i] = inside ? device::load(reinterpret_cast<const Columns*>(row + (w + i) * channels)) : Columns{};
  }
#pragma unroll
  for (int32_t s = 0; s < kTaps; ++s)
#pragma unroll
    for (int32_t c = 0; c < count; ++c) {
      const Accumulator<T> weight = device::load_shared(weights + s * weight_pitch + c);
#pragma unroll
      for (int32_t j = 0; j < kStrip; ++j) sums[j][c] += weight * widen(columns[j * kStep + s].at[c]);
    }
}

// Likewise for any number of taps and any distances.
template <class T, int32_t count, int32_t kStrip>
PYSERVE_DEVICE void add_row(const T* row, const Gather& g, int32_t w, const Accumulator<T>* weights,
                            int32_t weight_pitch, Accumulator<T> (&sums)[kStrip][count]) {
  for (int32_t s = 0; s < g.patches.taps_w.value; ++s)
#pragma unroll
    for (int32_t j = 0; j < kStrip; ++j) {
      const int64_t at = w + j * g.patches.step_w + s * g.patches.tap_w;
      if (at < 0 || at >= g.patches.width) continue;
      Accumulator<T> column[count];
      read(row + at * g.channels, 0, count, true, column);
#pragma unroll
      for (int32_t c = 0; c < count; ++c) sums[j][c] += device::load_shared(weights + s * weight_pitch + c) * column[c];
    }
}

// sums += the elements of `from` from i on, where there is a tensor.
template <class T, int32_t count>
PYSERVE_DEVICE void add(const void* from, int64_t i, Accumulator<T> (&sums)[count]) {
  if (from == nullptr) return;
  Accumulator<T> added[count];
  read(static_cast<const T*>(from), i, i + count, true, added);
#pragma unroll
  for (int32_t c = 0; c < count; ++c) sums[c] += added[c];
}

// kTaps = 0: any. Shared memory holds the weights of the block's channels, [tap][channel].
template <class T, int32_t count, int32_t kTaps, int32_t kStep>
PYSERVE_KERNEL(kThreads, 2)
gather_kernel(const T* x, const T* weight, PYSERVE_PARAMETER Gather g, PYSERVE_PARAMETER Epilogue epilogue, T* y) {
  using Acc = Accumulator<T>;
  constexpr int32_t kStrip = kStripOf<kStep>;
  Acc* const weights = reinterpret_cast<Acc*>(device::shared_memory());
  const int32_t thread = device::thread_index(), block_channels = static_cast<int32_t>(g.vectors.value) * count;
  const int64_t tile = device::block_index() % g.vector_tiles, first = tile * block_channels;
  const int32_t taps_w = static_cast<int32_t>(g.patches.taps_w.value);
  const int32_t taps = static_cast<int32_t>(g.taps_h) * taps_w;
  for (int32_t i = thread; i < taps * block_channels; i += kThreads) {
    const int32_t tap = i / block_channels, r = tap / taps_w;
    const int64_t channel = first + i % block_channels;
    const T* from = weight + g.weight_start + channel * g.weight_channel + r * g.weight_h + (tap % taps_w) * g.weight_w;
    device::store_shared(weights + i, channel < g.channels ? widen(device::load(from)) : Acc(0));
  }
  device::block_barrier();

  const int32_t strip_at = quotient(thread, g.vectors),
                vector = thread - strip_at * static_cast<int32_t>(g.vectors.value);
  const int64_t channel = first + vector * count, strips_a_block = kThreads / g.vectors.value;
  if (strip_at >= strips_a_block || channel >= g.channels) return;
  const int64_t step = device::grid_size() / g.vector_tiles * strips_a_block;
  const auto lo = static_cast<Acc>(epilogue.lo), hi = static_cast<Acc>(epilogue.hi);
  for (int64_t i = device::block_index() / g.vector_tiles * strips_a_block + strip_at; i < g.all_strips; i += step) {
    const int64_t row = quotient(i, g.strips), n = quotient(row, g.patches.rows_h);
    const int64_t column = (i - row * g.strips.value) * kStrip, line = row - n * g.patches.rows_h.value;
    const int64_t first_h = g.patches.start_h + line * g.patches.step_h;
    const auto first_w = static_cast<int32_t>(g.patches.start_w + column * g.patches.step_w);
    const T* const image = x + n * g.patches.height * g.patches.width * g.channels + channel;
    Acc sums[kStrip][count] = {};
    for (int32_t r = 0; r < g.taps_h; ++r) {
      const int64_t h = first_h + r * g.patches.tap_h;
      if (h < 0 || h >= g.patches.height) continue;
      const T* const source = image + h * g.patches.width * g.channels;
      const Acc* const row_weights = weights + r * taps_w * block_channels + vector * count;
      if constexpr (kTaps > 0) {
        add_row<T, count, kTaps, kStep, kStrip>(source, g.channels, first_w, static_cast<int32_t>(g.patches.width),
                                                row_weights, block_channels, sums);
      } else {
        add_row<T, count, kStrip>(source, g, first_w, row_weights, block_channels, sums);
      }
    }
    const int64_t out = n * g.out_image + g.out_start + line * g.out_h + column * g.out_w;
#pragma unroll
    for (int32_t j = 0; j < kStrip; ++j) {
      if (column + j >= g.patches.rows_w.value) break;
      const int64_t to = (out + j * g.out_w) * g.channels + channel;
      add<T>(epilogue.bias, channel, sums[j]);
      add<T>(epilogue.residual, to, sums[j]);
#pragma unroll
      for (int32_t c = 0; c < count; ++c) sums[j][c] = clamp(sums[j][c], lo, hi);
      write(y + to, 0, count, true, sums[j]);
    }
  }
}

// Runs a gather over all positions of `images` images.
template <class T, int32_t count, int32_t kTaps, int32_t kStep>
void run(Gather g, int64_t images, const T* x, const T* weight, const Epilogue& epilogue, T* y, const Queue& queue) {
  g.cut(count, kStripOf<kStep>, images);
  const int64_t per_block = kThreads / g.vectors.value, needed = (g.all_strips + per_block - 1) / per_block;
  const int64_t blocks = std::min<int64_t>(needed, std::max<int64_t>(1, 16 * queue.multiprocessors / g.vector_tiles));
  const auto shared = static_cast<int32_t>(g.taps_h * g.patches.taps_w.value * g.vectors.value) * count *
                      static_cast<int32_t>(sizeof(Accumulator<T>));
  device::launch(gather_kernel<T, count, kTaps, kStep>, blocks * g.vector_tiles, kThreads, shared, queue, x, weight, g,
                 epilogue, y);
}

template <class T, int32_t count>
void gather(Gather g, int64_t images, const T* x, const T* weight, const Epilogue& epilogue, T* y, const Queue& queue) {
  g.turn();
  const bool near = g.patches.tap_w == 1 && g.patches.taps_w.value == 3;
  if (near && g.patches.step_w == 1) return run<T, count, 3, 1>(g, images, x, weight, epilogue, y, queue);
  if (near && g.patches.step_w == 2) return run<T, count, 3, 2>(g, images, x, weight, epilogue, y, queue);
  run<T, count, 0, 1>(g, images, x, weight, epilogue, y, queue);
}

template <class T, int32_t count>
void forward(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  Gather g(forward_patches(p), p.C, p.R, p.S);
  g.weight_start = 0, g.weight_channel = p.R * p.S, g.weight_h = p.S, g.weight_w = 1;
  g.out_image = p.P * p.Q, g.out_h = p.Q, g.out_w = 1, g.out_start = 0;
  gather<T, count>(g, p.N, static_cast<const T*>(args.x), static_cast<const T*>(args.weight),
                   {args.bias, args.residual, p.clamp.lo, p.clamp.hi}, static_cast<T*>(args.y), queue);
}

template <class T, int32_t count>
void dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Queue& queue) {
  for_each_residue(p, [&](const ResidueClass& h, const ResidueClass& w) {
    Gather g(dgrad_patches(p, h, w), p.C, w.taps == 0 ? 0 : h.taps, w.taps);
    g.weight_start = h.first_tap * p.S + w.first_tap, g.weight_channel = p.R * p.S;
    g.weight_h = h.tap_step * p.S, g.weight_w = w.tap_step;
    g.out_image = p.H * p.W, g.out_h = p.stride_h * p.W, g.out_w = p.stride_w, g.out_start = h.first * p.W + w.first;
    gather<T, count>(g, p.N, static_cast<const T*>(args.grad), static_cast<const T*>(args.weight),
                     {nullptr, nullptr, -INFINITY, INFINITY}, static_cast<T*>(args.dx), queue);
  });
}

// ------------------------------------------------------------ gradient of weight

constexpr int32_t kTapsAtOnce = 9;

struct Wgrad {
  PatchGeometry patches;
  int64_t channels, taps, positions, chunk, vector_tiles, tap_tiles;
  Divisor vectors;
};

// A block sums a chunk of positions for its channels and up to 9 taps, in a fixed order, into parts [chunk][channel]
// [tap].
template <class T, int32_t count>
PYSERVE_KERNEL(kThreads, 2)
wgrad_kernel(const T* grad, const T* x, PYSERVE_PARAMETER Wgrad g, Accumulator<T>* parts) {
  using Acc = Accumulator<T>;
  const int32_t thread = device::thread_index(), vectors = static_cast<int32_t>(g.vectors.value);
  const int32_t row = quotient(thread, g.vectors), vector = thread - row * vectors, rows = kThreads / vectors;
  const int64_t tile = device::block_index() % g.vector_tiles, above = device::block_index() / g.vector_tiles;
  const int64_t first_tap = above % g.tap_tiles * kTapsAtOnce, chunk_at = above / g.tap_tiles;
  const int64_t channel = (tile * vectors + vector) * count;
  const int64_t begin = chunk_at * g.chunk, end = begin + g.chunk < g.positions ? begin + g.chunk : g.positions;
  const Patches<T> patches{x + channel, &g.patches};
  Acc* const shared = reinterpret_cast<Acc*>(device::shared_memory());  // [rows][channels of the block]
  Tap* const taps = reinterpret_cast<Tap*>(shared + kThreads * count);  // in registers they would push out the sums
  if (thread < kTapsAtOnce) device::store_shared(taps + thread, patches.tap(static_cast<int32_t>(first_tap) + thread));
  device::block_barrier();
  Acc sums[kTapsAtOnce][count] = {};
  for (int64_t i = begin + row; i < end && row < rows && channel < g.channels; i += rows) {
    const Position at = patches.position(i);
    Acc gradient[count];
    read(grad + i * g.channels + channel, 0, count, true, gradient);
#pragma unroll
    for (int32_t t = 0; t < kTapsAtOnce; ++t) {
      if (first_tap + t >= g.taps) break;
      const T* from = patches.at(at, device::load_shared(taps + t));
      if (from == nullptr) continue;
      Acc pixel[count];
      read(from, 0, count, true, pixel);
#pragma unroll
      for (int32_t c = 0; c < count; ++c) sums[t][c] += gradient[c] * pixel[c];
    }
  }
  const int32_t block_channels = vectors * count;
#pragma unroll
  for (int32_t t = 0; t < kTapsAtOnce; ++t) {
    if (first_tap + t >= g.taps) break;
    for (int32_t c = 0; c < count && row < rows; ++c)
      device::store_shared(shared + row * block_channels + vector * count + c, sums[t][c]);
    device::block_barrier();
    const int64_t mine = tile * block_channels + thread;
    if (thread < block_channels && mine < g.channels) {
      Acc sum = 0;
      for (int32_t i = 0; i < rows; ++i) sum += device::load_shared(shared + i * block_channels + thread);
      device::store(parts + (chunk_at * g.channels + mine) * g.taps + first_tap + t, sum);
    }
    device::block_barrier();
  }
}

template <class T, int32_t count>
void wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Queue& queue) {
  Wgrad g{forward_patches(p), p.C, p.R * p.S, p.N * p.P * p.Q, 0, 0, 0, Divisor(std::min<int64_t>(32, p.C / count))};
  g.vector_tiles = (p.C / count + g.vectors.value - 1) / g.vectors.value;
  g.tap_tiles = (g.taps + kTapsAtOnce - 1) / kTapsAtOnce;
  const int64_t rows = kThreads / g.vectors.value;
  const int64_t most = std::max<int64_t>(1, 1024 / (g.vector_tiles * g.tap_tiles));
  g.chunk = std::max<int64_t>(16 * rows, (g.positions + most - 1) / most);
  const int64_t chunks = (g.positions + g.chunk - 1) / g.chunk;
  auto* parts = queue.scratch<Accumulator<T>>(chunks * p.C * g.taps);
  const auto shared = static_cast<int32_t>(kThreads * count * sizeof(Accumulator<T>) + kTapsAtOnce * sizeof(Tap));
  device::launch(wgrad_kernel<T, count>, g.vector_tiles * g.tap_tiles * chunks, kThreads, shared, queue,
                 static_cast<const T*>(args.grad), static_cast<const T*>(args.x), g, parts);
  sum_parts(parts, chunks, p.C, g.taps, g.taps, static_cast<T*>(args.dw), queue);
}

// Calls f with the number of channels a thread takes: 16 bytes of them where all tensors are aligned so.
template <class T, class F>
void with_vector(const Conv2dProblem& p, bool aligned, F&& f) {
  if (aligned && p.C % kWide<T> == 0) return f(std::integral_constant<int32_t, kWide<T>>{});
  f(std::integral_constant<int32_t, 1>{});
}

}  // namespace pyserve::depthwise
