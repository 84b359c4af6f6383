// The weight gradient of few input channels: register tiles of inputs of a tap row × vectors of filters, summed along
// rows of output positions,
//
//     sums[r][i][k] = Σ_position grad[position][k] · row[r][position · stride · C + i],   i = s · C + c < S · C.
//
// A position's inputs are broadcast, where conv2d_wgrad.h makes vectors of them, of which three channels fill little.
// Output rows are cut into parts that depend on the problem alone, each with sums of its own, added up in one order:
// the result does not depend on the number of threads. Needs Vec; local to each including file.
#pragma once
#include "conv2d_shallow.h"
#include "conv2d_wgrad.h"

namespace pyserve {
namespace {

constexpr int kTileVectors = 2;
constexpr int kTileInputs = Vec::kWidth == 16 ? 14 : 6;  // × two vectors: 28 of 32, 12 of 16 registers hold sums

// Gradients are read from memory in order, then from the L1 cache for the other tiles: this many a time, times the
// inputs of an output, over which the sums' way through memory is spread.
constexpr int64_t kRunFloats = 40;

template <class T>
struct ShallowRun {
  const float* x;
  const T* grad;  // from the tile's first filter on
  int64_t count;  // positions
  int64_t x_step, grad_step, sums_step;
  int64_t left;  // filters in the last vector
};

template <int kInputs, int kVectors, bool kPartial, class T>
void add_shallow_tile(const ShallowRun<T>& run, float* sums) {
  const auto load = [&run](const T* from, int v) {
    return kPartial && v == kVectors - 1 ? Vec::load(from + v * Vec::kWidth, run.left)
                                         : Vec::load(from + v * Vec::kWidth);
  };
  Vec sum[kInputs][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kInputs; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vec::load(sums + i * run.sums_step + v * Vec::kWidth);
  const float* x = run.x;
  const T* grad = run.grad;
  for (int64_t n = run.count; n > 0; --n, x += run.x_step, grad += run.grad_step) {
    Vec filters[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) filters[v] = load(grad, v);
#pragma GCC unroll 16
    for (int i = 0; i < kInputs; ++i) {
      const Vec value = Vec::set(x[i]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] = sum[i][v].fma(value, filters[v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kInputs; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[i][v].store(sums + i * run.sums_step + v * Vec::kWidth);
}

template <int kInputs = 1, class T>
void add_shallow_inputs(int64_t inputs, int64_t vectors, const ShallowRun<T>& run, float* sums) {
  if constexpr (kInputs < kTileInputs)
    if (inputs != kInputs) return add_shallow_inputs<kInputs + 1>(inputs, vectors, run, sums);
  const bool partial = run.left < Vec::kWidth;
  if (vectors == 2)
    partial ? add_shallow_tile<kInputs, 2, true>(run, sums) : add_shallow_tile<kInputs, 2, false>(run, sums);
  else
    partial ? add_shallow_tile<kInputs, 1, true>(run, sums) : add_shallow_tile<kInputs, 1, false>(run, sums);
}

// Adds outputs [q, q + count) of a row, whose gradients start at grad, to sums [R][S·C][padded].
template <class T>
void add_shallow_run(const ShallowShape& s, const float* const* rows, int64_t q, int64_t count, const T* grad,
                     float* sums) {
  const int64_t K = s.p.K, step = s.p.stride_w * s.p.C, depth = s.depth(), pieces = ceil_div(depth, kTileInputs);
  for (int64_t k = 0; k < K; k += kTileVectors * Vec::kWidth) {
    const int64_t vectors = least(kTileVectors, ceil_div(K - k, Vec::kWidth));
    const int64_t left = least(Vec::kWidth, K - k - (vectors - 1) * Vec::kWidth);
    for (int64_t r = 0; r < s.p.R; ++r)
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t first = depth * piece / pieces, last = depth * (piece + 1) / pieces;
        const ShallowRun<T> run{rows[r] + q * step + first, grad + k, count, step, K, s.padded(), left};
        add_shallow_inputs(last - first, vectors, run, sums + (r * depth + first) * s.padded() + k);
      }
  }
}

template <class T>
void shallow_wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  const ShallowShape s{p};
  const T *x = static_cast<const T*>(args.x), *grad = static_cast<const T*>(args.grad);
  const int64_t lines = p.N * p.P, count = s.packed_size(), run = most(16, kRunFloats * p.R * s.depth() / p.K);
  const int64_t parts = most(1, least(least(lines, kWantedTasks), kMostPartFloats / count));
  const int64_t size = FramedRows<T>::size(s), workers = pool.workers(parts);
  float *sums = allocate_floats(pool, parts * count), *scratch = allocate_floats(pool, workers * size);
  pool.share(parts, [&](int64_t worker, int64_t begin, int64_t end) {
    FramedRows<T> framed(s, x, scratch + worker * size);
    const float* rows[kMostShallowTaps];
    for (int64_t part = begin; part < end; ++part) {
      float* own = sums + part * count;
      fill_zero(own, count);
      for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; ++i) {
        framed.find(i / p.P, i % p.P, rows);
        for (int64_t q = 0; q < p.Q; q += run)
          add_shallow_run(s, rows, q, least(run, p.Q - q), grad + (i * p.Q + q) * p.K, own);
      }
    }
  });
  add_parts(sums, parts, count, sums, pool);
  T* dw = static_cast<T*>(args.dw);
  for (int64_t k = 0; k < p.K; ++k)
    for (int64_t i = 0; i < p.R * s.depth(); ++i)
      store_one(sums[i * s.padded() + k],
                dw + k * p.R * s.depth() + i / p.C * p.weight_by_tap() + i % p.C * p.weight_by_c());
}

}  // namespace
}  // namespace pyserve
