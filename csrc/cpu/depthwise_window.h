// Depthwise 3×3 convolution without dilation, by windows: 2 × 4 outputs (1 × 4 for AVX2, and with stride 2) of a vector
// of channels share the pixels under them, so that each is loaded once for up to nine products. With that the layer
// runs at the speed of memory, from which the next window's pixels are brought meanwhile: the steps from pixel to pixel
// hide them from the processor's own prefetching. The input gradient of stride 1 is the same over turned filters; the
// weight gradient sums products of the same pixels. Needs Vec; local to each including file.
#pragma once
#include <type_traits>

#include "../parallel.h"
#include "../variants.h"
#include "convert.h"
#include "gather.h"
#include "prefetch.h"

namespace pyserve {
namespace {

// Rows of outputs; nine weights are in registers, too. With a step of two they would share one row of pixels in five.
constexpr int window_rows(int64_t step) { return Vec::kWidth == 16 && step == 1 ? 2 : 1; }
constexpr int kWindowColumns = 4;

// Where windows lie, and what they read.
template <class T>
struct Windows {
  int64_t images, out_h, out_w, in_h, in_w, channels, step;
  int64_t first_h, first_w;  // of the input pixels that output (0, 0) reads
  const T* input;
  const T* zeros;  // [channels]
  int64_t bands() const { return images * ceil_div(out_h, window_rows(step)); }
};

template <class T>
struct DepthwiseWindows : Windows<T> {
  const float* packed;  // [9][channels]
  const float* bias;    // [channels], or null
  const T* residual;    // like out, or null
  T* out;
  float lo, hi;
};

// Pixels under a window: rows × columns.
constexpr int window_extent(int outputs, int step) { return (outputs - 1) * step + 3; }

// The pixels under outputs (row …, column …) of an image, zeros where there are none.
template <int kRows, int kColumns, int kStep, class T>
void find_pixels(const Windows<T>& d, int64_t image, int64_t row, int64_t column, const T** pixel) {
  constexpr int kAcross = window_extent(kColumns, kStep), kDown = window_extent(kRows, kStep);
  const int64_t h0 = row * kStep + d.first_h, w0 = column * kStep + d.first_w;
  const T* first = d.input + ((image * d.in_h + h0) * d.in_w + w0) * d.channels;
  const bool within = w0 >= 0 && w0 + kAcross <= d.in_w;
  for (int h = 0; h < kDown; ++h, first += d.in_w * d.channels, pixel += kAcross) {
    const bool inside = h0 + h >= 0 && h0 + h < d.in_h;
    for (int w = 0; w < kAcross; ++w)
      pixel[w] = inside && (within || (w0 + w >= 0 && w0 + w < d.in_w)) ? first + w * d.channels : d.zeros;
  }
}

template <int n>
using Count = std::integral_constant<int, n>;

// f(rows, columns, image, row, column) for each window of bands [begin, end); rows and columns are constants.
template <int kStep, class T, class F>
void each_window(const Windows<T>& d, int64_t begin, int64_t end, F&& f) {
  const auto across = [&](auto rows, int64_t image, int64_t row) {
    int64_t column = 0;
    for (; column + kWindowColumns <= d.out_w; column += kWindowColumns)
      f(rows, Count<kWindowColumns>{}, image, row, column);
    if (d.out_w - column == 3) f(rows, Count<3>{}, image, row, column);
    if (d.out_w - column == 2) f(rows, Count<2>{}, image, row, column);
    if (d.out_w - column == 1) f(rows, Count<1>{}, image, row, column);
  };
  constexpr int kRows = window_rows(kStep);
  const int64_t bands = ceil_div(d.out_h, kRows);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / bands, row = i % bands * kRows;
    row + kRows <= d.out_h ? across(Count<kRows>{}, image, row) : across(Count<1>{}, image, row);
  }
}

// Channels [c, c + n) of one window; `at` is the first output's element.
template <int kRows, int kColumns, int kStep, bool kPartial, class T>
__attribute__((always_inline)) inline void window_vector(const DepthwiseWindows<T>& d, const T* const* pixel,
                                                         int64_t at, int64_t c) {
  constexpr int kAcross = window_extent(kColumns, kStep), kDown = window_extent(kRows, kStep);
  const int64_t n = d.channels - c, ahead = kColumns * kStep * d.channels;  // to the next window's pixels
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
      const T* from = pixel[h * kAcross + w] + c;
      const Vec value = load(from);
      if (w >= kAcross - kColumns * kStep) prefetch_read(reinterpret_cast<const char*>(from + ahead));
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
  const T* pixel[window_extent(kRows, kStep) * window_extent(kColumns, kStep)];
  find_pixels<kRows, kColumns, kStep, T>(d, image, row, column, pixel);
  const int64_t at = ((image * d.out_h + row) * d.out_w + column) * d.channels;
  int64_t c = 0;
  for (; c + Vec::kWidth <= d.channels; c += Vec::kWidth) window_vector<kRows, kColumns, kStep, false>(d, pixel, at, c);
  if (c < d.channels) window_vector<kRows, kColumns, kStep, true>(d, pixel, at, c);
}

template <int kStep, class T>
void run_windows(const DepthwiseWindows<T>& d, const Pool& pool) {
  pool(d.bands(), 1, [&](int64_t begin, int64_t end) {
    each_window<kStep>(d, begin, end, [&](auto rows, auto columns, int64_t image, int64_t row, int64_t column) {
      window<decltype(rows)::value, decltype(columns)::value, kStep>(d, image, row, column);
    });
  });
}

inline bool has_windows(const Conv2dProblem& p) {
  return p.R == 3 && p.S == 3 && p.dilation_h == 1 && p.dilation_w == 1 && p.stride_h == p.stride_w && p.stride_h <= 2;
}

template <class T>
Windows<T> forward_windows(const Conv2dProblem& p, const T* x, const Pool& pool) {
  return {p.N, p.P, p.Q, p.H, p.W, p.C, p.stride_h, -p.pad_h, -p.pad_w, x, zero_row<T>(pool, p.C)};
}

template <class T>
void windows_forward(const Conv2dProblem& p, const T* x, const float* packed, const float* bias, const T* residual,
                     T* y, const Pool& pool) {
  const float lo = static_cast<float>(p.clamp.lo), hi = static_cast<float>(p.clamp.hi);
  const DepthwiseWindows<T> d{forward_windows(p, x, pool), packed, bias, residual, y, lo, hi};
  p.stride_h == 1 ? run_windows<1>(d, pool) : run_windows<2>(d, pool);
}

// Stride 1; `packed` holds the filters turned by 180°.
template <class T>
void windows_dgrad(const Conv2dProblem& p, const T* grad, const float* packed, T* dx, const Pool& pool) {
  const T* zeros = zero_row<T>(pool, p.C);
  const Windows<T> of_grad{p.N, p.H, p.W, p.P, p.Q, p.C, 1, p.pad_h - 2, p.pad_w - 2, grad, zeros};
  run_windows<1>(DepthwiseWindows<T>{of_grad, packed, nullptr, nullptr, dx, -INFINITY, INFINITY}, pool);
}

// sums[tap][c] += Σ grad · x over one window, channels [c, c + n); `at` is its first output's element.
template <int kRows, int kColumns, int kStep, bool kPartial, class T>
__attribute__((always_inline)) inline void add_window_vector(const Windows<T>& d, const T* const* pixel, const T* grad,
                                                             int64_t at, int64_t c, float* sums) {
  constexpr int kAcross = window_extent(kColumns, kStep), kDown = window_extent(kRows, kStep);
  const int64_t n = d.channels - c, next = kColumns * d.channels;  // from a window's outputs to the next's
  const auto load = [n](const auto* from) { return kPartial ? Vec::load(from, n) : Vec::load(from); };
  Vec sum[9], gradient[kRows][kColumns];
#pragma GCC unroll 9
  for (int tap = 0; tap < 9; ++tap) sum[tap] = load(sums + tap * d.channels + c);
#pragma GCC unroll 2
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      const T* from = grad + at + (i * d.out_w + j) * d.channels + c;
      gradient[i][j] = load(from);
      prefetch_read(reinterpret_cast<const char*>(from + next));
    }
#pragma GCC unroll 8
  for (int h = 0; h < kDown; ++h)
#pragma GCC unroll 16
    for (int w = 0; w < kAcross; ++w) {
      const T* from = pixel[h * kAcross + w] + c;
      const Vec value = load(from);
      if (w >= kAcross - kColumns * kStep) prefetch_read(reinterpret_cast<const char*>(from + kStep * next));
#pragma GCC unroll 2
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kColumns; ++j) {
          const int r = h - i * kStep, s = w - j * kStep;
          if (r >= 0 && r < 3 && s >= 0 && s < 3) sum[r * 3 + s] = sum[r * 3 + s].fma(value, gradient[i][j]);
        }
    }
#pragma GCC unroll 9
  for (int tap = 0; tap < 9; ++tap) {
    float* to = sums + tap * d.channels + c;
    kPartial ? sum[tap].store(to, n) : sum[tap].store(to);
  }
}

template <int kRows, int kColumns, int kStep, class T>
__attribute__((noinline)) void add_window(const Windows<T>& d, int64_t image, int64_t row, int64_t column,
                                          const T* grad, float* sums) {
  const T* pixel[window_extent(kRows, kStep) * window_extent(kColumns, kStep)];
  find_pixels<kRows, kColumns, kStep>(d, image, row, column, pixel);
  const int64_t at = ((image * d.out_h + row) * d.out_w + column) * d.channels;
  int64_t c = 0;
  for (; c + Vec::kWidth <= d.channels; c += Vec::kWidth)
    add_window_vector<kRows, kColumns, kStep, false>(d, pixel, grad, at, c, sums);
  if (c < d.channels) add_window_vector<kRows, kColumns, kStep, true>(d, pixel, grad, at, c, sums);
}

// Adds bands [begin, end) to sums [9][channels].
template <int kStep, class T>
void add_bands(const Windows<T>& d, int64_t begin, int64_t end, const T* grad, float* sums) {
  each_window<kStep>(d, begin, end, [&](auto rows, auto columns, int64_t image, int64_t row, int64_t column) {
    add_window<decltype(rows)::value, decltype(columns)::value, kStep>(d, image, row, column, grad, sums);
  });
}

}  // namespace
}  // namespace pyserve
