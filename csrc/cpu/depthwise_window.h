// Depthwise 3×3 convolution without dilation, by windows: 2 × 4 outputs (1 × 4 for AVX2) of a vector of channels share
// the pixels under them, so that each is loaded once for up to nine products. With that the layer runs at the speed of
// memory. The input gradient of stride 1 is the same over turned filters. Needs Vec; local to each including file.
#pragma once
#include "../parallel.h"
#include "../variants.h"
#include "convert.h"
#include "gather.h"

namespace pyserve {
namespace {

constexpr int kWindowRows = Vec::kWidth == 16 ? 2 : 1;  // of outputs; nine weights are in registers, too
constexpr int kWindowColumns = 4;

template <class T>
struct DepthwiseWindows {
  int64_t images, out_h, out_w, in_h, in_w, channels, step;
  int64_t first_h, first_w;  // of the input pixels that output (0, 0) reads
  const T* input;
  const T* zeros;       // [channels]
  const float* packed;  // [9][channels]
  const float* bias;    // [channels], or null
  const T* residual;    // like out, or null
  T* out;
  float lo, hi;
};

// Pixels under a window: rows × columns.
constexpr int window_extent(int outputs, int step) { return (outputs - 1) * step + 3; }

// Channels [c, c + n) of one window; `at` is the first output's element.
template <int kRows, int kColumns, int kStep, bool kPartial, class T>
__attribute__((always_inline)) inline void window_vector(const DepthwiseWindows<T>& d, const T* const* pixel,
                                                         int64_t at, int64_t c) {
  constexpr int kAcross = window_extent(kColumns, kStep), kDown = window_extent(kRows, kStep);
  const int64_t n = d.channels - c;
  const auto load = [n](const auto* from) { return kPartial ? Vec::load(from, n) : Vec::load(from); };
  Vec weight[9], sum[kRows][kColumns];
#pragma GCC unroll 9
  for (int tap = 0; tap < 9; ++tap) weight[tap] = load(d.packed + tap * d.channels + c);
#pragma GCC unroll 2
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) sum[i][j] = d.bias ? load(d.bias + c) : Vec::zero();
#pragma GCC unroll 8
  for (int h = 0; h < kDown; ++h)
#pragma GCC unroll 16
    for (int w = 0; w < kAcross; ++w) {
      const Vec value = load(pixel[h * kAcross + w] + c);
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kColumns; ++j) {
          const int r = h - i * kStep, s = w - j * kStep;
          if (r >= 0 && r < 3 && s >= 0 && s < 3) sum[i][j] = sum[i][j].fma(value, weight[r * 3 + s]);
        }
    }
  const Vec lo = Vec::set(d.lo), hi = Vec::set(d.hi);
#pragma GCC unroll 2
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      const int64_t to = at + (i * d.out_w + j) * d.channels + c;
      if (d.residual) sum[i][j] = sum[i][j] + load(d.residual + to);
      const Vec value = sum[i][j].clamp(lo, hi);
      kPartial ? value.store(d.out + to, n) : value.store(d.out + to);
    }
}

// Outputs (row …, column …) of an image.
template <int kRows, int kColumns, int kStep, class T>
__attribute__((noinline)) void window(const DepthwiseWindows<T>& d, int64_t image, int64_t row, int64_t column) {
  constexpr int kAcross = window_extent(kColumns, kStep), kDown = window_extent(kRows, kStep);
  const T* pixel[kDown * kAcross];
  const int64_t w0 = column * kStep + d.first_w;
  for (int h = 0; h < kDown; ++h) {
    const int64_t in_row = row * kStep + d.first_h + h;
    const bool inside = in_row >= 0 && in_row < d.in_h;
    const T* line = d.input + ((image * d.in_h + in_row) * d.in_w + w0) * d.channels;
    for (int w = 0; w < kAcross; ++w)
      pixel[h * kAcross + w] = inside && w0 + w >= 0 && w0 + w < d.in_w ? line + w * d.channels : d.zeros;
  }
  const int64_t at = ((image * d.out_h + row) * d.out_w + column) * d.channels;
  int64_t c = 0;
  for (; c + Vec::kWidth <= d.channels; c += Vec::kWidth) window_vector<kRows, kColumns, kStep, false>(d, pixel, at, c);
  if (c < d.channels) window_vector<kRows, kColumns, kStep, true>(d, pixel, at, c);
}

template <int kRows, int kStep, class T>
void window_rows(const DepthwiseWindows<T>& d, int64_t image, int64_t row) {
  int64_t column = 0;
  for (; column + 4 <= d.out_w; column += 4) window<kRows, 4, kStep>(d, image, row, column);
  if (d.out_w - column == 3) window<kRows, 3, kStep>(d, image, row, column);
  if (d.out_w - column == 2) window<kRows, 2, kStep>(d, image, row, column);
  if (d.out_w - column == 1) window<kRows, 1, kStep>(d, image, row, column);
}

template <int kStep, class T>
void run_windows(const DepthwiseWindows<T>& d, const Pool& pool) {
  const int64_t bands = ceil_div(d.out_h, kWindowRows);
  pool(d.images * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / bands, row = i % bands * kWindowRows;
      if (row + kWindowRows <= d.out_h)
        window_rows<kWindowRows, kStep>(d, image, row);
      else
        window_rows<1, kStep>(d, image, row);
    }
  });
}

inline bool has_windows(const Conv2dProblem& p) {
  return p.R == 3 && p.S == 3 && p.dilation_h == 1 && p.dilation_w == 1 && p.stride_h == p.stride_w && p.stride_h <= 2;
}

template <class T>
void windows_forward(const Conv2dProblem& p, const T* x, const float* packed, const float* bias, const T* residual,
                     T* y, const Pool& pool) {
  const DepthwiseWindows<T> d{p.N,
                              p.P,
                              p.Q,
                              p.H,
                              p.W,
                              p.C,
                              p.stride_h,
                              -p.pad_h,
                              -p.pad_w,
                              x,
                              zero_row<T>(pool, p.C),
                              packed,
                              bias,
                              residual,
                              y,
                              static_cast<float>(p.clamp.lo),
                              static_cast<float>(p.clamp.hi)};
  p.stride_h == 1 ? run_windows<1>(d, pool) : run_windows<2>(d, pool);
}

// Stride 1; `packed` holds the filters turned by 180°.
template <class T>
void windows_dgrad(const Conv2dProblem& p, const T* grad, const float* packed, T* dx, const Pool& pool) {
  const DepthwiseWindows<T> d{
      p.N,    p.H,     p.W,     p.P, p.Q,       p.C,     1, p.pad_h - 2, p.pad_w - 2, grad, zero_row<T>(pool, p.C),
      packed, nullptr, nullptr, dx,  -INFINITY, INFINITY};
  run_windows<1>(d, pool);
}

}  // namespace
}  // namespace pyserve
