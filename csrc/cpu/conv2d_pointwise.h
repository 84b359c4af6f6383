// 1×1 convolution and, without strides, its input gradient: a matrix product whose register tiles go to memory once,
// with bias, residual and clamp, by tiles of Vec::rows(v) pixels × v vectors of output channels. Where channels are
// few, what the direct kernel loses is the sums' way through memory. Weights are packed as conv2d_direct.h has it,
// [channels/(v·width)][input channel][v·width]. float32 sums; float32 and bfloat16 tensors. Needs Vec; local to each
// including file.
#pragma once
#include <utility>

#include "conv2d_direct.h"
#include "prefetch.h"

namespace pyserve {
namespace {

template <class T>
struct PointwiseTile {
  const float* a;  // [row][depth]
  int64_t depth;
  const float* b;     // [depth][columns]
  const float* bias;  // [columns], or null
  const T* residual;  // like out, or null
  T* out;             // [row][out_step]
  int64_t out_step;
  int64_t columns;  // to be written, of the tile's
  float lo, hi;
};

template <int kRows, int kVectors, class T>
__attribute__((noinline)) void pointwise_tile(const PointwiseTile<T>& t) {
  constexpr int kWidth = Vec::kWidth;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = t.bias ? Vec::load(t.bias + v * kWidth) : Vec::zero();
      // What the tile that follows writes and adds.
      prefetch_write(reinterpret_cast<const char*>(t.out + (r + kRows) * t.out_step + v * kWidth));
      if (t.residual) prefetch_read(reinterpret_cast<const char*>(t.residual + (r + kRows) * t.out_step + v * kWidth));
    }
  // Every fourth row has a pointer; the others lie at one, two and three steps from it.
  const int64_t step = t.depth, step2 = 2 * step, step3 = 3 * step;
  const float* a[ceil_div(kRows, 4)];
#pragma GCC unroll 4
  for (int i = 0; i * 4 < kRows; ++i) a[i] = t.a + i * 4 * step;
  const float *b = t.b, *next = t.a + kRows * step;  // the rows of the tile that follows
  for (int64_t l = 0; l < t.depth; ++l, b += kVectors * kWidth, next += kRows) {
    Vec column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = Vec::load(b + v * kWidth);
    prefetch_read(reinterpret_cast<const char*>(next));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec value = Vec::set(a[r / 4][r % 4 == 0 ? 0 : r % 4 == 1 ? step : r % 4 == 2 ? step2 : step3]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = sum[r][v].dot(value, column[v]);
    }
#pragma GCC unroll 4
    for (int i = 0; i * 4 < kRows; ++i) {
      ++a[i];
      asm("" : "+r"(a[i]));  // else the compiler makes a pointer of each row, more than there are registers
    }
  }
  const Vec lo = Vec::set(t.lo), hi = Vec::set(t.hi);
  const bool whole = t.columns >= kVectors * kWidth;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = r * t.out_step + v * kWidth, left = whole ? kWidth : t.columns - v * kWidth;
      if (left <= 0) continue;
      const bool partial = !whole && left < kWidth;
      Vec value = sum[r][v];
      if (t.residual) value = value + (partial ? Vec::load(t.residual + at, left) : Vec::load(t.residual + at));
      partial ? value.clamp(lo, hi).store(t.out + at, left) : value.clamp(lo, hi).store(t.out + at);
    }
}

template <class T>
using PointwiseKernel = void (*)(const PointwiseTile<T>&);

template <class T, int kVectors, int... kRowsLess1>
constexpr PointwiseKernel<T> pointwise_kernel(int64_t rows, std::integer_sequence<int, kRowsLess1...>) {
  constexpr PointwiseKernel<T> table[] = {pointwise_tile<kRowsLess1 + 1, kVectors, T>...};
  return table[rows - 1];
}

// For 1 ≤ rows ≤ Vec::rows(vectors).
template <class T, int kVectors = 1>
PointwiseKernel<T> pointwise_kernel(int64_t vectors, int64_t rows) {
  if (vectors == kVectors)
    return pointwise_kernel<T, kVectors>(rows, std::make_integer_sequence<int, Vec::rows(kVectors)>{});
  if constexpr (kVectors < Vec::kMostVectors) return pointwise_kernel<T, kVectors + 1>(vectors, rows);
  return nullptr;
}

// One panel of output channels for `count` pixels, in tiles of nearly equal height.
template <class T>
void pointwise_panel(const PointwiseTile<T>& panel, int64_t vectors, int64_t count) {
  const int64_t tiles = ceil_div(count, Vec::rows(static_cast<int>(vectors)));
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = count * i / tiles, rows = count * (i + 1) / tiles - first;
    PointwiseTile<T> t = panel;
    t.a += first * t.depth, t.out += first * t.out_step;
    if (t.residual) t.residual += first * t.out_step;
    pointwise_kernel<T>(vectors, rows)(t);
  }
}

// The pixels of positions [first, first + count) one behind the other: where they lie so, themselves.
inline const float* pointwise_pixels(const Grid& g, const float* input, int64_t first, int64_t count, float* copies) {
  if (g.step_h == 1 && g.step_w == 1) return input + first * g.in_pixel;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (first + i) / g.columns, h = row % g.rows * g.step_h, w = (first + i) % g.columns * g.step_w;
    widen_row(input + ((row / g.rows * g.in_h + h) * g.in_w + w) * g.in_pixel, copies + i * g.in_pixel, g.in_pixel);
  }
  return copies;
}

// m has one tap and one group.
template <class T>
void run_pointwise(const Product& m, const float* input, const float* packed, const Epilogue<T>& epilogue,
                   const Pool& pool) {
  const bool strided = m.grid.step_h > 1 || m.grid.step_w > 1;
  const int64_t positions = m.grid.positions(), blocks = ceil_div(positions, kBlock), panels = m.panels();
  const int64_t parts = blocks >= kManyBlocks ? 1 : panels, tasks = blocks * parts;
  float* copies = strided ? allocate_floats(pool, pool.workers(tasks) * kBlock * m.depth) : nullptr;
  pool.share(tasks, [&](int64_t worker, int64_t begin, int64_t end) {
    const float* pixels = nullptr;
    int64_t filled = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / parts, part = task % parts;
      const int64_t first = positions * block / blocks, count = positions * (block + 1) / blocks - first;
      if (filled != block) pixels = pointwise_pixels(m.grid, input, first, count, copies + worker * kBlock * m.depth);
      filled = block;
      for (int64_t i = parts == 1 ? 0 : part; i < (parts == 1 ? panels : part + 1); ++i) {
        const int64_t j0 = i * kPanel, width = least(kPanel, m.padded() - j0), at = first * m.columns + j0;
        pointwise_panel<T>({pixels, m.depth, packed + j0 * m.depth, epilogue.bias ? epilogue.bias + j0 : nullptr,
                            epilogue.residual ? epilogue.residual + at : nullptr, epilogue.out + at, m.columns,
                            m.columns - j0, epilogue.lo, epilogue.hi},
                           width / Vec::kWidth, count);
      }
    }
  });
}

template <class T>
void pointwise_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const Product m = forward_product(p);
  const float* input = as_floats(static_cast<const T*>(args.x), p.N * p.H * p.W * p.C, pool);
  const float* packed = args.packed ? args.packed : pack(m, static_cast<const T*>(args.weight), pool);
  const Epilogue<T> epilogue{pack_bias(m, static_cast<const T*>(args.bias), pool), static_cast<const T*>(args.residual),
                             static_cast<T*>(args.y), static_cast<float>(p.clamp.lo), static_cast<float>(p.clamp.hi)};
  run_pointwise(m, input, packed, epilogue, pool);
}

template <class T>
void pointwise_dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  const Product m = backward_product(p, 0, 0);
  const float* grad = as_floats(static_cast<const T*>(args.grad), p.N * p.P * p.Q * p.K, pool);
  const Epilogue<T> epilogue{nullptr, nullptr, static_cast<T*>(args.dx), -INFINITY, INFINITY};
  run_pointwise(m, grad, pack(m, static_cast<const T*>(args.weight), pool), epilogue, pool);
}

}  // namespace
}  // namespace pyserve
