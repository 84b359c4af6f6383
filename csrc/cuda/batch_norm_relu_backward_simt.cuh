// The gradients of BatchNorm with residual and clamp: one pass for the sums, one for dx; or one pass in all where a
// channel's rows fit into shared memory. Sums have one fixed order.
#pragma once
#include "batch_norm_relu_simt.cuh"

namespace pyserve::batch_norm {

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

// dbias and dweight of the parts.
template <class Acc>
struct FinishGradients {
  int64_t channels, parts, chunks;
  Divisor tiles;
  double eps;
  const Acc *var, *from;
  Acc *dbias, *dweight;

  PYSERVE_DEVICE int64_t begin(int64_t) const { return 0; }
  PYSERVE_DEVICE int64_t end(int64_t) const { return parts; }
  PYSERVE_DEVICE void add(int64_t, int64_t part, int64_t channel, double& sum, double& product) const {
    sum += device::load(from + part * 2 * channels + channel);
    product += device::load(from + (part * 2 + 1) * channels + channel);
  }
  PYSERVE_DEVICE void write(int64_t, int64_t channel, double sum, double product) const {
    const double inverse = device::inverse_square_root(static_cast<double>(device::load(var + channel)) + eps);
    device::store(dbias + channel, static_cast<Acc>(sum));
    device::store(dweight + channel, static_cast<Acc>(product * inverse));
  }
};

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
  const Acc share = Acc(1) / static_cast<Acc>(cut.rows);
#pragma unroll
  for (int32_t c = 0; c < count; ++c) {  // 0 · share would let an infinite sum into every dx
    sum[c] = training ? sum[c] * share : Acc(0);
    product[c] = training ? product[c] * (share * inverse[c]) : Acc(0);
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

// ------------------------------------------------------------ of maps that fit into shared memory

// A block has some channels and all of their rows: grad and x are read once, and wait in shared memory, g masked, for
// the sums. A thread comes back to the rows that it has put there itself.
template <class T, int32_t count>
PYSERVE_KERNEL(kThreads, 2)
gradient_slice_kernel(PYSERVE_PARAMETER BatchNormReluBackwardArgs args, PYSERVE_PARAMETER Cut cut, double eps,
                      double lo, double hi, bool training) {
  using Acc = Accumulator<T>;
  using Some = device::Vector<T, count>;
  const Place at = Place::of<count>(cut);
  const int32_t width = at.vectors * count, thread = device::thread_index();
  Acc* const sums = reinterpret_cast<Acc*>(device::shared_memory());  // [lines][width]
  Acc* const products = sums + kThreads * count;
  Some* const kept = reinterpret_cast<Some*>(products + kThreads * count);  // [rows][g, x][vectors]
  const bool works = at.line < at.lines && at.channel < cut.channels;
  Line<Acc, count> line;
  Acc sum[count] = {}, product[count] = {};
  if (works) {
    line.read_from(args, at.channel, cut.channels, eps);
    for (int64_t row = at.line; row < cut.rows; row += at.lines) {
      const int64_t i = row * cut.channels + at.channel, end = (row + 1) * cut.channels;
      Acc g[count], values[count];
      read_masked<T>(args, line, i, end, lo, hi, g, values);
      if (args.dresidual != nullptr) write(static_cast<T*>(args.dresidual), i, end, true, g);
      Some g_kept, x_kept;
#pragma unroll
      for (int32_t c = 0; c < count; ++c) {
        sum[c] += g[c];
        product[c] += g[c] * (values[c] - line.mean[c]);
        g_kept.at[c] = narrow<T>(g[c]), x_kept.at[c] = narrow<T>(values[c]);
      }
      device::store_shared(kept + row * 2 * at.vectors + at.vector, g_kept);
      device::store_shared(kept + (row * 2 + 1) * at.vectors + at.vector, x_kept);
    }
  }
#pragma unroll
  for (int32_t c = 0; c < count; ++c)
    if (at.line < at.lines) {
      device::store_shared(sums + at.line * width + at.vector * count + c, sum[c]);
      device::store_shared(products + at.line * width + at.vector * count + c, product[c]);
    }
  device::block_barrier();
  const int64_t channel = device::block_index() * width + thread;
  if (thread < width && channel < cut.channels) {  // the totals, in the place of the first line's
    double total = 0, total_product = 0;
    for (int32_t i = thread; i < at.lines * width; i += width) {
      total += device::load_shared(sums + i);
      total_product += device::load_shared(products + i);
    }
    const double var = static_cast<double>(device::load(static_cast<const Acc*>(args.var) + channel));
    const double inverse = device::inverse_square_root(var + eps), share = 1 / static_cast<double>(cut.rows);
    if (args.dbias != nullptr) device::store(static_cast<Acc*>(args.dbias) + channel, static_cast<Acc>(total));
    if (args.dweight != nullptr)
      device::store(static_cast<Acc*>(args.dweight) + channel, static_cast<Acc>(total_product * inverse));
    device::store_shared(sums + thread, training ? static_cast<Acc>(total * share) : Acc(0));
    device::store_shared(products + thread,
                         training ? static_cast<Acc>(total_product * inverse * inverse * share) : Acc(0));
  }
  device::block_barrier();
  if (!works || args.dx == nullptr) return;
#pragma unroll
  for (int32_t c = 0; c < count; ++c) {
    sum[c] = device::load_shared(sums + at.vector * count + c);
    product[c] = device::load_shared(products + at.vector * count + c);
  }
  for (int64_t row = at.line; row < cut.rows; row += at.lines) {
    const int64_t i = row * cut.channels + at.channel, end = (row + 1) * cut.channels;
    const Some g = device::load_shared(kept + row * 2 * at.vectors + at.vector);
    const Some x = device::load_shared(kept + (row * 2 + 1) * at.vectors + at.vector);
    Acc values[count];
#pragma unroll
    for (int32_t c = 0; c < count; ++c)
      values[c] = line.scale[c] * (widen(g.at[c]) - sum[c] - (widen(x.at[c]) - line.mean[c]) * product[c]);
    write(static_cast<T*>(args.dx), i, end, true, values);
  }
}

// What a block of that kernel takes; the rest of its memory is left to a second block, or to the L1 cache.
constexpr int64_t kMostSliceBytes = 96 << 10;

template <class T, int32_t count>
int64_t slice_bytes(int64_t rows, int64_t vectors) {
  return 2 * count *
         (kThreads * static_cast<int64_t>(sizeof(Accumulator<T>)) + rows * vectors * static_cast<int64_t>(sizeof(T)));
}

// The vectors of channels that fit with all their rows: 64 or 32 bytes of a row, or 0 where the rows are too many.
template <class T, int32_t count>
int64_t slice_vectors(const BatchNormProblem& p) {
  constexpr int64_t kVectorBytes = count * static_cast<int64_t>(sizeof(T));
  const int64_t all = (p.channels + count - 1) / count;
  for (const int64_t bytes : {64, 32}) {
    const int64_t vectors = std::min<int64_t>(std::max<int64_t>(1, bytes / kVectorBytes), all);
    if (slice_bytes<T, count>(p.rows, vectors) <= kMostSliceBytes) return vectors;
  }
  return 0;
}

// ------------------------------------------------------------ launch

template <class T, int32_t count>
void backward(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args, const Queue& queue) {
  using Acc = Accumulator<T>;
  const Cut cut(p, count);
  const double lo = p.clamp.mask_lo(), hi = p.clamp.mask_hi();
  if (const int64_t vectors = slice_vectors<T, count>(p)) {
    const Cut slice = Cut::slice(p, count, vectors);
    device::launch(gradient_slice_kernel<T, count>, slice.tiles, kThreads,
                   static_cast<int32_t>(slice_bytes<T, count>(p.rows, vectors)), queue, args, slice, p.eps, lo, hi,
                   p.training);
    return;
  }
  Acc* parts = queue.scratch<Acc>(cut.chunks * 2 * p.channels);
  BatchNormReluBackwardArgs all = args;  // the sums are needed for dx also where the caller does not want them
  if (all.dweight == nullptr) all.dweight = queue.scratch<Acc>(p.channels);
  if (all.dbias == nullptr) all.dbias = queue.scratch<Acc>(p.channels);
  device::launch(gradient_sums_kernel<T, count>, cut.tiles * cut.chunks, kThreads, shared_bytes<T>(count), queue, all,
                 cut, p.eps, lo, hi, parts);
  channels::finish(FinishGradients<Acc>{p.channels, cut.chunks, 1, channels::tiles_of(p.channels), p.eps,
                                        static_cast<const Acc*>(all.var), parts, static_cast<Acc*>(all.dbias),
                                        static_cast<Acc*>(all.dweight)},
                   queue);
  if (args.dx == nullptr && args.dresidual == nullptr) return;
  device::launch(gradient_kernel<T, count>, cut.tiles * cut.chunks, kThreads, 0, queue, all, cut, p.eps, lo, hi,
                 p.training);
}

}  // namespace pyserve::batch_norm
