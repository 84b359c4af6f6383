// The weight gradient, by register tiles: rows of filters × vectors of input channels, summed over runs of output
// positions, dw[k][tap][l] = Σ_position grad[position][k] · x[what the tap reads there][l]. Positions are cut into
// parts that depend on the problem alone, each with sums of its own, added up in one order: the result does not depend
// on the number of threads. float32 sums; float32 and bfloat16 tensors. Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "convert.h"
#include "gather.h"

namespace pyserve {
namespace {

constexpr int64_t kRunPositions = 192;        // output positions per block: their rows stay in the caches
constexpr int64_t kFilters = 48;              // filters per task; a multiple of every tile's rows
constexpr int64_t kWantedTasks = 32;          // enough for the threads of one processor
constexpr int64_t kMostPartFloats = 1 << 24;  // of sums in all parts together, where one part is smaller

// Output positions of one row that read inside the image through one tap.
struct Run {
  const float *grad, *x;
  int64_t count;
};

struct WgradShape {
  int64_t taps_h, taps_w, depth;  // `depth` contiguous channels per tap
  int64_t H, W, pad_h, pad_w;     // of the images as they are read: framed images have no padding left
  int64_t filter() const { return taps_h * taps_w * depth; }
};

inline WgradShape wgrad_shape(const Conv2dProblem& p) {
  if (reads_runs(p)) return {p.R, 1, p.S * p.C, p.H + 2 * p.pad_h, p.W + 2 * p.pad_w, 0, 0};
  return {p.R, p.S, p.group_c(), p.H, p.W, p.pad_h, p.pad_w};
}

// The runs of tap (r, s) in output rows [first, last) of all images; returns their number.
inline int64_t find_runs(const Conv2dProblem& p, const WgradShape& shape, const float* grad, const float* x,
                         int64_t first, int64_t last, int64_t r, int64_t s, Run* runs) {
  const int64_t shift = shape.pad_w - s * p.dilation_w;  // column = q·stride − shift
  const int64_t q0 = shift > 0 ? ceil_div(shift, p.stride_w) : 0, past = shape.W + shift;
  const int64_t q1 = past <= 0 ? 0 : least(p.Q, ceil_div(past, p.stride_w));
  int64_t count = 0;
  for (int64_t row = first; row < last && q0 < q1; ++row) {
    const int64_t h = row % p.P * p.stride_h - shape.pad_h + r * p.dilation_h;
    if (h < 0 || h >= shape.H) continue;
    const Run run{grad + (row * p.Q + q0) * p.K,
                  x + ((row / p.P * shape.H + h) * shape.W + q0 * p.stride_w - shift) * p.C, q1 - q0};
    Run* before = runs + count - 1;
    const bool joins = count > 0 && run.grad == before->grad + before->count * p.K &&
                       run.x == before->x + before->count * p.stride_w * p.C;
    if (joins) before->count += run.count;
    if (!joins) runs[count++] = run;
  }
  return count;
}

struct Tile {
  const Run* runs;
  int64_t run_count;
  int64_t grad_step, x_step;  // from one position to the next
  int64_t k, l;               // first filter and channel
  float* dw;                  // its sums
  int64_t dw_step;            // from one filter to the next
  int skip;                   // leading rows that an earlier tile has done
  int64_t last_count;         // channels in the last vector
};

template <int kRows, int kVectors, bool kPartial>
void add_tile(const Tile& t) {
  constexpr int kLast = kVectors - 1;
  const auto load = [&t](const float* from, int v) {
    return kPartial && v == kLast ? Vec::load(from + v * Vec::kWidth, t.last_count) : Vec::load(from + v * Vec::kWidth);
  };
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v] = load(t.dw + m * t.dw_step, v);
  for (int64_t i = 0; i < t.run_count; ++i) {
    const float *grad = t.runs[i].grad + t.k, *x = t.runs[i].x + t.l;
    for (int64_t n = t.runs[i].count; n > 0; --n, grad += t.grad_step, x += t.x_step) {
      Vec channels[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) channels[v] = load(x, v);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const Vec value = Vec::set(grad[m]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[m][v] = sum[m][v].fma(value, channels[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    if (m < t.skip) continue;
    float* to = t.dw + m * t.dw_step;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if (kPartial && v == kLast)
        sum[m][v].store(to + v * Vec::kWidth, t.last_count);
      else
        sum[m][v].store(to + v * Vec::kWidth);
    }
  }
}

// Filters [t.k, last) in tiles of kRows; the last tile reaches back over rows that are done already.
template <int kRows, int kVectors, bool kPartial>
void add_rows(Tile t, int64_t last) {
  for (;; t.k += kRows, t.dw += kRows * t.dw_step) {
    const int64_t left = last - t.k;
    if (left <= 0) return;
    if (left < kRows) {
      t.skip = static_cast<int>(kRows - left);
      t.k -= t.skip, t.dw -= t.skip * t.dw_step;
    }
    add_tile<kRows, kVectors, kPartial>(t);
    if (left <= kRows) return;
  }
}

template <int kVectors, bool kPartial>
void add_filters(const Tile& t, int64_t last) {
  const int64_t filters = last - t.k;
  if (filters >= Vec::rows(kVectors)) return add_rows<Vec::rows(kVectors), kVectors, kPartial>(t, last);
  if (filters >= 4) return add_rows<4, kVectors, kPartial>(t, last);
  add_rows<1, kVectors, kPartial>(t, last);
}

template <int kVectors = 1>
void add_channels(int64_t vectors, const Tile& t, int64_t last) {
  if (vectors == kVectors) {
    if (t.last_count == Vec::kWidth) return add_filters<kVectors, false>(t, last);
    return add_filters<kVectors, true>(t, last);
  }
  if constexpr (kVectors < Vec::kMostVectors) add_channels<kVectors + 1>(vectors, t, last);
}

// Adds output rows [first_row, last_row) to the sums of filters [k0, k1) of one group.
inline void add_block(const Conv2dProblem& p, const WgradShape& shape, const float* grad, const float* x,
                      int64_t first_row, int64_t last_row, int64_t group, int64_t k0, int64_t k1, float* sums) {
  constexpr int64_t kChannels = Vec::kWidth * Vec::kMostVectors;
  Run runs[kRunPositions];
  for (int64_t tap = 0; tap < shape.taps_h * shape.taps_w; ++tap) {
    const int64_t count = find_runs(p, shape, grad, x + group * p.group_c(), first_row, last_row, tap / shape.taps_w,
                                    tap % shape.taps_w, runs);
    if (count == 0) continue;
    for (int64_t l = 0; l < shape.depth; l += kChannels) {
      const int64_t channels = least(kChannels, shape.depth - l), vectors = ceil_div(channels, Vec::kWidth);
      const Tile tile{runs,
                      count,
                      p.K,
                      p.stride_w * p.C,
                      k0,
                      l,
                      sums + k0 * shape.filter() + tap * shape.depth + l,
                      shape.filter(),
                      0,
                      channels - (vectors - 1) * Vec::kWidth};
      add_channels(vectors, tile, k1);
    }
  }
}

// dw = the parts' sums, in one order.
template <class T>
void add_parts(const float* sums, int64_t parts, int64_t count, T* dw, const Pool& pool) {
  constexpr int64_t kPiece = 1 << 12;
  pool(ceil_div(count, kPiece), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kPiece; i < least(count, end * kPiece); i += Vec::kWidth) {
      const int64_t n = least(Vec::kWidth, count - i);
      Vec total = n < Vec::kWidth ? Vec::load(sums + i, n) : Vec::load(sums + i);
      for (int64_t part = 1; part < parts; ++part)
        total = total + (n < Vec::kWidth ? Vec::load(sums + part * count + i, n) : Vec::load(sums + part * count + i));
      if (n < Vec::kWidth)
        total.store(dw + i, n);
      else
        total.store(dw + i);
    }
  });
}

template <class T>
void direct_wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  const WgradShape shape = wgrad_shape(p);
  const T* images = static_cast<const T*>(args.x);
  const float* grad = as_floats(static_cast<const T*>(args.grad), p.N * p.P * p.Q * p.K, pool);
  const float* x = reads_runs(p) ? framed(images, p.N, p.H, p.W, p.C, p.pad_h, p.pad_w, pool)
                                 : as_floats(images, p.N * p.H * p.W * p.C, pool);
  const int64_t rows = p.N * p.P, block_rows = most(1, kRunPositions / p.Q), blocks = ceil_div(rows, block_rows);
  const int64_t slices = ceil_div(p.group_k(), kFilters), count = p.K * shape.filter();
  const int64_t parts =
      most(1, least(least(blocks, ceil_div(kWantedTasks, p.groups * slices)), kMostPartFloats / count));
  float* sums = allocate_floats(pool, parts * count);
  pool(parts * p.groups * slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / slices / p.groups, group = task / slices % p.groups;
      const int64_t k0 = group * p.group_k() + task % slices * kFilters;
      const int64_t k1 = least(k0 + kFilters, (group + 1) * p.group_k());
      float* own = sums + part * count;
      fill_zero(own + k0 * shape.filter(), (k1 - k0) * shape.filter());
      for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
        add_block(p, shape, grad, x, block * block_rows, least(rows, (block + 1) * block_rows), group, k0, k1, own);
    }
  });
  if (!p.kcrs || p.group_c() == 1 || p.R * p.S == 1)
    return add_parts(sums, parts, count, static_cast<T*>(args.dw), pool);
  add_parts(sums, parts, count, sums, pool);
  store_gradient(p, sums, static_cast<T*>(args.dw), pool);
}

}  // namespace
}  // namespace pyserve
