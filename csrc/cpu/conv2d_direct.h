// Direct convolution and its input gradient, by register tiles: Vec::rows(v) output positions × v vectors of output
// channels, summed over taps and input channels, read through a table of pixel pointers (gather.h). The weights are
// repacked per call to [channels/(v·width)][tap][input channel][v·width]. float32 sums; float32 and bfloat16 tensors.
// The input gradient is the same sum over the transposed weights, one pass per stride class of input positions.
// Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "convert.h"
#include "gather.h"

namespace pyserve {
namespace {

constexpr int64_t kPanel = Vec::kWidth * Vec::kMostVectors;  // output channels per panel of packed weights
constexpr int64_t kPanelFloats = 1 << 16;                    // of a panel at a time: a quarter MiB, for the L2 cache
constexpr int64_t kManyBlocks = 16;  // with fewer blocks of positions, threads share out the panels as well

// out[position][group·columns + j] = Σ_tap Σ_l input[pixel(position, tap)][group·depth + l] · weight(tap, l, j)
struct Product {
  Grid grid;
  Axis rows, columns_axis;
  int64_t groups, columns, depth;  // per group: output channels, and what is summed over per tap
  int64_t by_column, by_depth;     // strides of the weights
  int64_t by_group, by_tap_h, by_tap_w;
  int64_t taps() const { return rows.count * columns_axis.count; }
  int64_t padded() const { return ceil_div(columns, Vec::kWidth) * Vec::kWidth; }
  int64_t panels() const { return ceil_div(columns, kPanel); }
  int64_t packed_size() const { return groups * taps() * depth * padded(); }
};

// One tap of a panel whose columns are contiguous in the weights.
template <class T>
void pack_rows(const Product& m, const T* from, int64_t count, int64_t width, float* to) {
  for (int64_t l = 0; l < m.depth; ++l, to += width) {
    widen_row(from + l * m.by_depth, to, count);
    fill_zero(to + count, width - count);
  }
}

// One tap of a panel whose depth is contiguous in the weights: transposed in squares.
template <class T>
void pack_transposed(const Product& m, const T* from, int64_t count, int64_t width, float* to) {
  constexpr int64_t kSide = Vec::kWidth;
  for (int64_t l = 0; l < m.depth; l += kSide)
    for (int64_t j = 0; j < width; j += kSide) {
      const int64_t depth = least(kSide, m.depth - l);
      Vec square[kSide];
      for (int64_t i = 0; i < kSide; ++i) {
        const T* row = from + (j + i) * m.by_column + l;
        square[i] = j + i >= count ? Vec::zero() : depth < kSide ? Vec::load(row, depth) : Vec::load(row);
      }
      Vec::transpose(square);
      for (int64_t i = 0; i < depth; ++i) square[i].store(to + (l + i) * width + j);
    }
}

template <class T>
void pack(const Product& m, const T* weight, float* packed, const Pool& pool) {
  const int64_t taps = m.taps();
  pool(m.groups * m.panels() * taps, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tap = i % taps, panel = i / taps % m.panels(), group = i / taps / m.panels();
      const int64_t j0 = panel * kPanel, width = least(kPanel, m.padded() - j0);
      const int64_t r = m.rows.source[tap / m.columns_axis.count],
                    s = m.columns_axis.source[tap % m.columns_axis.count];
      const T* from = weight + group * m.by_group + r * m.by_tap_h + s * m.by_tap_w + j0 * m.by_column;
      float* to = packed + (group * m.padded() + j0) * taps * m.depth + tap * m.depth * width;
      const int64_t count = least(width, m.columns - j0);
      m.by_column == 1 ? pack_rows(m, from, count, width, to) : pack_transposed(m, from, count, width, to);
    }
  });
}

template <class T>
const float* pack(const Product& m, const T* weight, const Pool& pool) {
  float* packed = allocate_floats(pool, m.packed_size());
  pack(m, weight, packed, pool);
  return packed;
}

// sums[row][v] (+)= Σ_tap Σ_l pixel[tap][row][offset + l] · b[tap][l][v]
template <int kVectors>
void tile(const float* const (*pixel)[kBlock], int64_t taps, int64_t offset, int64_t depth, const float* b, float* sums,
          bool first) {
  constexpr int kRows = Vec::rows(kVectors), kWidth = kVectors * Vec::kWidth;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v] = first ? Vec::zero() : Vec::load(sums + m * kWidth + v * Vec::kWidth);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const float* a[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) a[m] = pixel[tap][m] + offset;
    for (int64_t l = 0; l < depth; ++l, b += kWidth) {
      Vec column[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) column[v] = Vec::load(b + v * Vec::kWidth);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const Vec value = Vec::set(a[m][l]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[m][v] = sum[m][v].dot(value, column[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v].store(sums + m * kWidth + v * Vec::kWidth);
}

// One panel for one block of positions; `sums` [kBlock][width]. Goes through the panel in pieces that the cache holds.
template <int kVectors>
void panel_sums(const Product& m, Table<float>& table, const Block& block, const float* input, const float* zeros,
                int64_t group, const float* panel, float* sums) {
  constexpr int64_t kWidth = kVectors * Vec::kWidth;
  const int64_t taps = m.taps(), depth_step = least(m.depth, kPanelFloats / kWidth);
  if (taps == 0) fill_zero(sums, block.count * kWidth);
  const int64_t tap_step = most(1, least(kTableTaps, kPanelFloats / kWidth / m.depth));
  for (int64_t tap = 0; tap < taps; tap += tap_step) {
    const int64_t tap_end = least(taps, tap + tap_step);
    table.fill(m.grid, m.rows, m.columns_axis, block, input, zeros, tap, tap_end);
    for (int64_t l = 0; l < m.depth; l += depth_step) {
      const float* b = panel + (tap * m.depth + l) * kWidth;
      for (int64_t row = 0; row < block.count; row += Vec::rows(kVectors)) {
        const auto* pixel = reinterpret_cast<const float* const(*)[kBlock]>(&table.pixel[0][row]);
        tile<kVectors>(pixel, tap_end - tap, group * m.depth + l, least(depth_step, m.depth - l), b,
                       sums + row * kWidth, tap == 0 && l == 0);
      }
    }
  }
}

template <int kVectors = 1, class... Args>
void panel_sums_of(int64_t vectors, Args&... args) {
  if (vectors == kVectors) return panel_sums<kVectors>(args...);
  if constexpr (kVectors < Vec::kMostVectors) panel_sums_of<kVectors + 1>(vectors, args...);
}

template <class T>
struct Epilogue {
  const float* bias;  // [groups][padded], or null
  const T* residual;
  T* out;
  float lo, hi;

  // Writes `count` channels from `channel` on of every position in the block.
  void write(const Block& block, const float* sums, int64_t width, const float* panel_bias, int64_t channel,
             int64_t count, int64_t channels) const {
    const Vec low = Vec::set(lo), high = Vec::set(hi);
    for (int64_t b = 0; b < block.count; ++b)
      for (int64_t j = 0; j < count; j += Vec::kWidth) {
        const int64_t at = block.out[b] * channels + channel + j, n = count - j;
        Vec value = Vec::load(sums + b * width + j);
        if (panel_bias) value = value + Vec::load(panel_bias + j);
        if (n >= Vec::kWidth) {
          if (residual) value = value + Vec::load(residual + at);
          value.clamp(low, high).store(out + at);
        } else {
          if (residual) value = value + Vec::load(residual + at, n);
          value.clamp(low, high).store(out + at, n);
        }
      }
  }
};

template <class T>
void run_product(const Product& m, const float* input, const float* packed, const Epilogue<T>& epilogue,
                 const Pool& pool) {
  const float* zeros = zero_row<float>(pool, most(m.grid.in_pixel, m.depth));
  const int64_t blocks = ceil_div(m.grid.positions(), kBlock), panels = m.groups * m.panels();
  const int64_t parts = blocks >= kManyBlocks ? 1 : panels;
  pool(blocks * parts, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kBlock * kPanel];
    Table<float> table;
    for (int64_t task = begin; task < end; ++task) {
      const Block block(m.grid, task / parts * kBlock);
      table.first = -1;
      const int64_t part = task % parts, first = parts == 1 ? 0 : part, last = parts == 1 ? panels : part + 1;
      for (int64_t i = first; i < last; ++i) {
        const int64_t group = i / m.panels(), j0 = i % m.panels() * kPanel, width = least(kPanel, m.padded() - j0);
        const float* panel = packed + (group * m.padded() + j0) * m.taps() * m.depth;
        panel_sums_of(width / Vec::kWidth, m, table, block, input, zeros, group, panel, sums);
        const float* bias = epilogue.bias ? epilogue.bias + group * m.padded() + j0 : nullptr;
        epilogue.write(block, sums, width, bias, group * m.columns + j0, least(width, m.columns - j0),
                       m.groups * m.columns);
      }
    }
  });
}

// A bias as floats, padded per group to whole vectors.
template <class T>
const float* pack_bias(const Product& m, const T* bias, const Pool& pool) {
  if (bias == nullptr) return nullptr;
  float* packed = zero_row<float>(pool, m.groups * m.padded());
  for (int64_t g = 0; g < m.groups; ++g) widen_row(bias + g * m.columns, packed + g * m.padded(), m.columns);
  return packed;
}

inline Axis forward_axis(int64_t taps, int64_t dilation, int64_t pad) {
  Axis axis;
  for (axis.count = 0; axis.count < taps; ++axis.count) {
    axis.offset[axis.count] = axis.count * dilation - pad;
    axis.source[axis.count] = axis.count;
  }
  return axis;
}

// The taps through which input positions first, first + stride, … were read, and from which output position.
inline Axis backward_axis(int64_t taps, int64_t dilation, int64_t pad, int64_t stride, int64_t first) {
  Axis axis;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t at = first + pad - t * dilation;
    if (at % stride != 0) continue;
    axis.offset[axis.count] = at / stride;
    axis.source[axis.count++] = t;
  }
  return axis;
}

inline Product forward_product(const Conv2dProblem& p) {
  const bool runs = reads_runs(p);
  const int64_t C = p.group_c(), filter = p.R * p.S * C;
  Product m{};
  m.grid = {p.N, p.P, p.Q, p.stride_h, p.stride_w, p.H, p.W, p.C, 0, 0, 1, 1, p.P, p.Q};
  if (runs) m.grid.in_h = p.H + 2 * p.pad_h, m.grid.in_w = p.W + 2 * p.pad_w;
  m.rows = forward_axis(p.R, p.dilation_h, runs ? 0 : p.pad_h);
  m.columns_axis = forward_axis(runs ? 1 : p.S, p.dilation_w, runs ? 0 : p.pad_w);
  m.groups = p.groups, m.columns = p.group_k(), m.depth = runs ? p.S * C : C;
  m.by_column = filter, m.by_depth = 1;
  m.by_group = p.group_k() * filter, m.by_tap_h = p.S * C, m.by_tap_w = C;
  return m;
}

template <class T>
void direct_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const Product m = forward_product(p);
  const T* x = static_cast<const T*>(args.x);
  const float* input =
      reads_runs(p) ? framed(x, p.N, p.H, p.W, p.C, p.pad_h, p.pad_w, pool) : as_floats(x, p.N * p.H * p.W * p.C, pool);
  const float* packed = args.packed ? args.packed : pack(m, krsc_weight<T>(p, args.weight, pool), pool);
  const Epilogue<T> epilogue{pack_bias(m, static_cast<const T*>(args.bias), pool), static_cast<const T*>(args.residual),
                             static_cast<T*>(args.y), static_cast<float>(p.clamp.lo), static_cast<float>(p.clamp.hi)};
  run_product(m, input, packed, epilogue, pool);
}

inline int32_t direct_layout(const Conv2dProblem&) { return 0; }
inline int64_t direct_packed_size(const Conv2dProblem& p) { return forward_product(p).packed_size(); }
inline void direct_pack(const Conv2dProblem& p, const void* weight, float* packed, const Pool& pool) {
  const Product m = forward_product(p);
  p.dtype == DType::f32 ? pack(m, static_cast<const float*>(weight), packed, pool)
                        : pack(m, static_cast<const Bf16*>(weight), packed, pool);
}

// Input positions (first_h + i·stride_h, first_w + j·stride_w): all of them are read through the same taps.
inline Product backward_product(const Conv2dProblem& p, int64_t first_h, int64_t first_w) {
  const int64_t C = p.group_c(), filter = p.R * p.S * C;
  Product m{};
  m.grid = {p.N,
            ceil_div(p.H - first_h, p.stride_h),
            ceil_div(p.W - first_w, p.stride_w),
            1,
            1,
            p.P,
            p.Q,
            p.K,
            first_h,
            first_w,
            p.stride_h,
            p.stride_w,
            p.H,
            p.W};
  m.rows = backward_axis(p.R, p.dilation_h, p.pad_h, p.stride_h, first_h);
  m.columns_axis = backward_axis(p.S, p.dilation_w, p.pad_w, p.stride_w, first_w);
  m.groups = p.groups, m.columns = C, m.depth = p.group_k();
  m.by_column = 1, m.by_depth = filter;
  m.by_group = p.group_k() * filter, m.by_tap_h = p.S * C, m.by_tap_w = C;
  return m;
}

template <class T>
void direct_dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  const float* grad = as_floats(static_cast<const T*>(args.grad), p.N * p.P * p.Q * p.K, pool);
  const T* weight = krsc_weight<T>(p, args.weight, pool);
  const Epilogue<T> epilogue{nullptr, nullptr, static_cast<T*>(args.dx), -INFINITY, INFINITY};
  for (int64_t h = 0; h < least(p.stride_h, p.H); ++h)
    for (int64_t w = 0; w < least(p.stride_w, p.W); ++w) {
      const Product m = backward_product(p, h, w);
      run_product(m, grad, pack(m, weight, pool), epilogue, pool);
    }
}

}  // namespace
}  // namespace pyserve
