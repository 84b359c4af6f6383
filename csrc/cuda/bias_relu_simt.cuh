// The fused clamp(x + bias + residual) and its backward: one pass at memory speed, 16 bytes a thread where x is
// aligned.
#pragma once
#include <algorithm>

#include "../bias_relu.h"
#include "divisor.h"
#include "vector_access.h"

namespace pyserve::simt {

constexpr int32_t kPointwiseThreads = 256;
constexpr int64_t kMostPointwiseBlocks = int64_t{1} << 20;

// The problem, and its divisions.
struct Shape : BiasReluProblem {
  Divisor by_inner, by_channels;
  explicit Shape(const BiasReluProblem& p) : BiasReluProblem(p), by_inner(p.inner), by_channels(p.channels) {}
};

template <class T>
PYSERVE_KERNEL(kPointwiseThreads, 4)
bias_relu_kernel(PYSERVE_PARAMETER Shape p, PYSERVE_PARAMETER BiasReluArgs args, bool wide) {
  using Acc = Accumulator<T>;
  constexpr int32_t count = kWide<T>;
  const T *x = static_cast<const T*>(args.x), *bias = static_cast<const T*>(args.bias);
  const Acc lo = static_cast<Acc>(p.clamp.lo), hi = static_cast<Acc>(p.clamp.hi);
  const int64_t numel = p.numel(), step = device::grid_size() * kPointwiseThreads * count;
  int64_t i = (device::block_index() * kPointwiseThreads + device::thread_index()) * count;
  for (; i < numel; i += step) {
    Acc values[count], residual[count] = {};
    read(x, i, numel, wide, values);
    if (args.residual != nullptr) read(static_cast<const T*>(args.residual), i, numel, wide, residual);
    if (bias != nullptr) {
      const int64_t plane = quotient(i, p.by_inner);
      int64_t within = i - plane * p.inner, channel = plane - quotient(plane, p.by_channels) * p.channels;
#pragma unroll
      for (int32_t j = 0; j < count; ++j) {
        values[j] += widen(device::load(bias + channel));
        if (++within == p.inner) within = 0, channel = channel + 1 == p.channels ? 0 : channel + 1;
      }
    }
#pragma unroll
    for (int32_t j = 0; j < count; ++j) values[j] = clamp(values[j] + residual[j], lo, hi);
    write(static_cast<T*>(args.y), i, numel, wide, values);
  }
}

template <class T>
void bias_relu(const BiasReluProblem& p, const BiasReluArgs& args, const Queue& queue) {
  const int64_t per_block = kPointwiseThreads * kWide<T>;
  const int64_t blocks = std::min((p.numel() + per_block - 1) / per_block, kMostPointwiseBlocks);
  const bool wide = aligned(args.x) && aligned(args.residual) && aligned(args.y);
  device::launch(bias_relu_kernel<T>, blocks, kPointwiseThreads, 0, queue, Shape(p), args, wide);
}

// ------------------------------------------------------------ backward

// A block sums a chunk of positions for `kLanes` neighbouring channels (1 where the channels lie apart: inner > 1), in
// a fixed order. `parts` is [chunks][channels], or null where no sum is wanted.
template <class T, int32_t kLanes>
PYSERVE_KERNEL(kPointwiseThreads, 4)
bias_relu_backward_kernel(PYSERVE_PARAMETER Shape p, PYSERVE_PARAMETER BiasReluBackwardArgs args, int64_t chunk,
                          PYSERVE_PARAMETER Divisor tiles, Accumulator<T>* parts) {
  using Acc = Accumulator<T>;
  constexpr int32_t kRows = kPointwiseThreads / kLanes;
  const T *grad = static_cast<const T*>(args.grad), *y = static_cast<const T*>(args.y);
  const Acc lo = static_cast<Acc>(p.clamp.mask_lo()), hi = static_cast<Acc>(p.clamp.mask_hi());
  const int64_t positions = p.outer * p.inner, chunk_at = quotient(device::block_index(), tiles);
  const int64_t channel = (device::block_index() - chunk_at * tiles.value) * kLanes + device::thread_index() % kLanes;
  const int64_t begin = chunk_at * chunk, end = begin + chunk < positions ? begin + chunk : positions;
  Acc sum = 0;
  for (int64_t j = begin + device::thread_index() / kLanes; j < end && channel < p.channels; j += kRows) {
    const int64_t outer = quotient(j, p.by_inner), i = (outer * p.channels + channel) * p.inner + j - outer * p.inner;
    const Acc seen = y != nullptr ? widen(device::load(y + i)) : Acc(0);
    const bool blocked = y != nullptr && (seen <= lo || seen >= hi);
    const T g = blocked ? narrow<T>(0) : device::load(grad + i);
    sum += widen(g);
    if (args.dx != nullptr) device::store(static_cast<T*>(args.dx) + i, g);
  }
  if (parts == nullptr) return;

  Acc* sums = reinterpret_cast<Acc*>(device::shared_memory());  // [kRows][kLanes], halved until one row is left
  device::store_shared(sums + device::thread_index(), sum);
  for (int32_t half = kPointwiseThreads / 2; half >= kLanes; half /= 2) {
    device::block_barrier();
    if (device::thread_index() < half) {
      sum += device::load_shared(sums + device::thread_index() + half);
      device::store_shared(sums + device::thread_index(), sum);
    }
  }
  if (device::thread_index() < kLanes && channel < p.channels)
    device::store(parts + chunk_at * p.channels + channel, sum);
}

// dbias[c] = Σ parts[chunk][c], in the order of the chunks.
template <class T>
PYSERVE_KERNEL(kPointwiseThreads, 4)
sum_chunks_kernel(const Accumulator<T>* parts, int64_t chunks, int64_t channels, T* dbias) {
  const int64_t channel = device::block_index() * kPointwiseThreads + device::thread_index();
  if (channel >= channels) return;
  Accumulator<T> sum = 0;
  for (int64_t i = 0; i < chunks; ++i) sum += device::load(parts + i * channels + channel);
  device::store(dbias + channel, narrow<T>(sum));
}

template <class T, int32_t kLanes>
void bias_relu_backward(const BiasReluProblem& p, const BiasReluBackwardArgs& args, const Queue& queue) {
  // At least 16 positions a thread, and at most about 2048 blocks: a function of the problem alone.
  const int64_t tiles = (p.channels + kLanes - 1) / kLanes, positions = p.outer * p.inner;
  const int64_t most_chunks = std::max<int64_t>(1, 2048 / tiles);
  const int64_t chunk = std::max<int64_t>(16 * kPointwiseThreads / kLanes, (positions + most_chunks - 1) / most_chunks);
  const int64_t chunks = (positions + chunk - 1) / chunk;
  Accumulator<T>* parts = args.dbias != nullptr ? queue.scratch<Accumulator<T>>(chunks * p.channels) : nullptr;
  device::launch(bias_relu_backward_kernel<T, kLanes>, tiles * chunks, kPointwiseThreads,
                 kPointwiseThreads * static_cast<int32_t>(sizeof(Accumulator<T>)), queue, Shape(p), args, chunk,
                 Divisor(tiles), parts);
  if (parts == nullptr) return;
  device::launch(sum_chunks_kernel<T>, (p.channels + kPointwiseThreads - 1) / kPointwiseThreads, kPointwiseThreads, 0,
                 queue, parts, chunks, p.channels, static_cast<T*>(args.dbias));
}

template <class T>
void bias_relu_backward(const BiasReluProblem& p, const BiasReluBackwardArgs& args, const Queue& queue) {
  if (p.inner == 1) return bias_relu_backward<T, 32>(p, args, queue);
  bias_relu_backward<T, 1>(p, args, queue);
}

}  // namespace pyserve::simt
