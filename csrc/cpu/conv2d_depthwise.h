// Depthwise convolution (one filter per channel) and its gradients, vectorised over channels: 3×3 by windows
// (depthwise_window.h), the others through a table of pixel pointers (gather.h). float32 sums; float32 and bfloat16
// tensors. Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "conv2d_direct.h"
#include "conv2d_wgrad.h"
#include "convert.h"
#include "depthwise_window.h"
#include "gather.h"

namespace pyserve {
namespace {

constexpr int kPositions = 8;  // output positions that share a load of the weights

// weight [C][R][S] → floats [tap][C], in the order of the axes' taps.
template <class T>
void pack_depthwise(const Conv2dProblem& p, const Product& m, const T* weight, float* packed) {
  for (int64_t tap = 0; tap < m.taps(); ++tap) {
    const int64_t r = m.rows.source[tap / m.columns_axis.count], s = m.columns_axis.source[tap % m.columns_axis.count];
    for (int64_t c = 0; c < p.C; ++c) packed[tap * p.C + c] = to_float(weight[(c * p.R + r) * p.S + s]);
  }
}

template <class T>
const float* pack_depthwise(const Conv2dProblem& p, const Product& m, const T* weight, const Pool& pool) {
  float* packed = allocate_floats(pool, most(1, m.taps()) * p.C);
  pack_depthwise(p, m, weight, packed);
  return packed;
}

// 3×3 filters turned by 180°, as floats [tap][C].
template <class T>
const float* pack_turned(const Conv2dProblem& p, const T* weight, const Pool& pool) {
  float* packed = allocate_floats(pool, 9 * p.C);
  for (int64_t tap = 0; tap < 9; ++tap)
    for (int64_t c = 0; c < p.C; ++c) packed[tap * p.C + c] = to_float(weight[c * 9 + 8 - tap]);
  return packed;
}

// kPositions positions from b on, channels [c, c + n).
template <bool kPartial, class T>
void depthwise_tile(const Table<T>& table, int64_t taps, const Block& block, int64_t b, const float* packed, int64_t C,
                    int64_t c, const float* bias, const T* residual, T* out, Clamp clamp) {
  const int64_t n = C - c;
  const auto load = [n](const auto* from) { return kPartial ? Vec::load(from, n) : Vec::load(from); };
  Vec sum[kPositions];
#pragma GCC unroll 8
  for (int m = 0; m < kPositions; ++m) sum[m] = bias ? load(bias + c) : Vec::zero();
  for (int64_t tap = 0; tap < taps; ++tap) {
    const Vec weight = load(packed + tap * C + c);
#pragma GCC unroll 8
    for (int m = 0; m < kPositions; ++m) sum[m] = sum[m].fma(load(table.pixel[tap][b + m] + c), weight);
  }
  const Vec lo = Vec::set(static_cast<float>(clamp.lo)), hi = Vec::set(static_cast<float>(clamp.hi));
#pragma GCC unroll 8
  for (int m = 0; m < kPositions; ++m) {
    if (b + m >= block.count) continue;
    const int64_t at = block.out[b + m] * C + c;
    if (residual) sum[m] = sum[m] + load(residual + at);
    if (kPartial)
      sum[m].clamp(lo, hi).store(out + at, n);
    else
      sum[m].clamp(lo, hi).store(out + at);
  }
}

template <class T>
void run_depthwise(const Conv2dProblem& p, const Product& m, const T* input, const float* packed, const float* bias,
                   const T* residual, T* out, Clamp clamp, const Pool& pool) {
  const T* zeros = zero_row<T>(pool, p.C);
  pool(ceil_div(m.grid.positions(), kBlock), 1, [&](int64_t begin, int64_t end) {
    Table<T> table;
    for (int64_t i = begin; i < end; ++i) {
      const Block block(m.grid, i * kBlock);
      table.first = -1;
      table.fill(m.grid, m.rows, m.columns_axis, block, input, zeros, 0, m.taps());
      for (int64_t b = 0; b < block.count; b += kPositions) {
        int64_t c = 0;
        for (; c + Vec::kWidth <= p.C; c += Vec::kWidth)
          depthwise_tile<false>(table, m.taps(), block, b, packed, p.C, c, bias, residual, out, clamp);
        if (c < p.C) depthwise_tile<true>(table, m.taps(), block, b, packed, p.C, c, bias, residual, out, clamp);
      }
    }
  });
}

template <class T>
void depthwise_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const Product m = forward_product(p);
  const T* bias = static_cast<const T*>(args.bias);
  const float* packed = args.packed ? args.packed : pack_depthwise(p, m, static_cast<const T*>(args.weight), pool);
  const float* bias_floats = bias ? as_floats(bias, p.C, pool) : nullptr;
  const T *x = static_cast<const T*>(args.x), *residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  if (has_windows(p)) return windows_forward(p, x, packed, bias_floats, residual, y, pool);
  run_depthwise(p, m, x, packed, bias_floats, residual, y, p.clamp, pool);
}

template <class T>
void depthwise_dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  if (has_windows(p) && p.stride_h == 1) {
    const float* turned = pack_turned(p, static_cast<const T*>(args.weight), pool);
    return windows_dgrad(p, static_cast<const T*>(args.grad), turned, static_cast<T*>(args.dx), pool);
  }
  for (int64_t h = 0; h < least(p.stride_h, p.H); ++h)
    for (int64_t w = 0; w < least(p.stride_w, p.W); ++w) {
      const Product m = backward_product(p, h, w);
      const float* packed = pack_depthwise(p, m, static_cast<const T*>(args.weight), pool);
      run_depthwise<T>(p, m, static_cast<const T*>(args.grad), packed, nullptr, nullptr, static_cast<T*>(args.dx),
                       {-INFINITY, INFINITY}, pool);
    }
}

inline int64_t depthwise_packed_size(const Conv2dProblem& p) { return p.R * p.S * p.C; }
inline void depthwise_pack(const Conv2dProblem& p, const void* weight, float* packed, const Pool&) {
  const Product m = forward_product(p);
  p.dtype == DType::f32 ? pack_depthwise(p, m, static_cast<const float*>(weight), packed)
                        : pack_depthwise(p, m, static_cast<const Bf16*>(weight), packed);
}

// sums[tap][c] += Σ_position grad · x for kTaps taps from `tap` on, channels [c, c + n).
template <int kTaps, bool kPartial, class T>
void add_depthwise(const Table<T>& table, const Block& block, int64_t tap, const T* grad, int64_t C, int64_t c,
                   float* sums) {
  const int64_t n = C - c;
  const auto load = [n](const auto* from) { return kPartial ? Vec::load(from, n) : Vec::load(from); };
  Vec sum[kTaps];
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) sum[t] = load(sums + (tap + t) * C + c);
  for (int64_t b = 0; b < block.count; ++b) {
    const Vec g = load(grad + block.out[b] * C + c);
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t) sum[t] = sum[t].fma(g, load(table.pixel[tap + t][b] + c));
  }
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) {
    if (kPartial)
      sum[t].store(sums + (tap + t) * C + c, n);
    else
      sum[t].store(sums + (tap + t) * C + c);
  }
}

template <bool kPartial, class T>
void add_depthwise_taps(const Table<T>& table, const Block& block, int64_t taps, const T* grad, int64_t C, int64_t c,
                        float* sums) {
  int64_t tap = 0;
  for (; tap + 9 <= taps; tap += 9) add_depthwise<9, kPartial>(table, block, tap, grad, C, c, sums);
  for (; tap + 4 <= taps; tap += 4) add_depthwise<4, kPartial>(table, block, tap, grad, C, c, sums);
  for (; tap < taps; ++tap) add_depthwise<1, kPartial>(table, block, tap, grad, C, c, sums);
}

constexpr int64_t kLeastUnits = 4;  // in a part: zeroing and adding up its sums costs as much as one

// dw by add(begin, end, sums), which adds some of `units` pieces of work to sums [taps][C]. They are cut into parts
// that depend on the problem alone, added up in one order: the result does not depend on the number of threads.
template <class T, class F>
void depthwise_sums(const Conv2dProblem& p, int64_t units, int64_t taps, T* dw, const Pool& pool, F&& add) {
  const int64_t parts = least(ceil_div(units, kLeastUnits), kWantedTasks), count = taps * p.C;
  float *sums = allocate_floats(pool, parts * count), *total = allocate_floats(pool, count);
  pool(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      fill_zero(sums + part * count, count);
      add(units * part / parts, units * (part + 1) / parts, sums + part * count);
    }
  });
  add_parts(sums, parts, count, total, pool);
  for (int64_t c = 0; c < p.C; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) store_one(total[tap * p.C + c], dw + c * taps + tap);
}

template <class T>
void depthwise_wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *grad = static_cast<const T*>(args.grad);
  T* dw = static_cast<T*>(args.dw);
  if (has_windows(p)) {
    const Windows<T> d = forward_windows(p, x, pool);
    return depthwise_sums(p, d.bands(), 9, dw, pool, [&](int64_t begin, int64_t end, float* sums) {
      p.stride_h == 1 ? add_bands<1>(d, begin, end, grad, sums) : add_bands<2>(d, begin, end, grad, sums);
    });
  }
  const Product m = forward_product(p);
  const T* zeros = zero_row<T>(pool, p.C);
  const int64_t blocks = ceil_div(m.grid.positions(), kBlock), taps = m.taps();
  depthwise_sums(p, blocks, taps, dw, pool, [&](int64_t begin, int64_t end, float* sums) {
    Table<T> table;
    for (int64_t i = begin; i < end; ++i) {
      const Block block(m.grid, i * kBlock);
      table.first = -1;
      table.fill(m.grid, m.rows, m.columns_axis, block, x, zeros, 0, taps);
      int64_t c = 0;
      for (; c + Vec::kWidth <= p.C; c += Vec::kWidth)
        add_depthwise_taps<false>(table, block, taps, grad, p.C, c, sums);
      if (c < p.C) add_depthwise_taps<true>(table, block, taps, grad, p.C, c, sums);
    }
  });
}

}  // namespace
}  // namespace pyserve
