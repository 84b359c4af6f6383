// The convolution and its gradients as matrix products, sums over `inner` of left(outer row, inner) × right(inner,
// outer column): what the two matrices are, without ever being written out (implicit GEMM).
//
//             rows               columns             inner
//   forward   positions of y     filters             taps × channels     left = x, right = weight
//   dgrad     positions of x     channels            taps × filters      left = grad, right = weight
//   wgrad     filters            taps × channels     positions of y      left = grad, right = x
//
// An operand says of each index along its outer and inner side, by itself, where in memory it points; `at` puts the two
// together, or gives null in the padding. kInnerContiguous: neighbours along the sum are neighbours in memory, else
// those along the outer side are. Everything here is of one group. Index is int32_t where all indices are below 2³¹
// (divisions are quicker then), else int64_t; offsets are always 64-bit; coordinates along one axis are 32-bit, see
// covers_axes().
#pragma once
#include <numeric>

#include "../conv2d.h"
#include "divisor.h"
#include "element.h"

namespace pyserve {

// Which elements of a channels-last tensor [N][height][width][channels] a position, one of rows_h × rows_w an image,
// reads through a tap: at row start_h + i·step_h + r·tap_h, likewise its column. Padding makes these negative.
struct PatchGeometry {
  int64_t height, width, channels;
  Divisor rows_h, rows_w;
  int64_t step_h, step_w, start_h, start_w;
  Divisor taps_w, tap_channels;
  int64_t tap_h, tap_w;
};

struct Position {
  int64_t offset;
  int32_t h, w;
};
// A tap and a channel: what they add to a position.
struct Tap {
  int64_t offset;
  int32_t h, w;
};

template <class T>
struct Patches {
  const T* tensor;  // at the group's first channel
  const PatchGeometry* g;

  template <class Index>
  PYSERVE_DEVICE Position position(Index i) const {
    const Index row = quotient(i, g->rows_w), n = quotient(row, g->rows_h);
    const int64_t h = g->start_h + (row - n * static_cast<Index>(g->rows_h.value)) * g->step_h;
    const int64_t w = g->start_w + (i - row * static_cast<Index>(g->rows_w.value)) * g->step_w;
    return {((n * g->height + h) * g->width + w) * g->channels, static_cast<int32_t>(h), static_cast<int32_t>(w)};
  }
  template <class Index>
  PYSERVE_DEVICE Tap tap(Index i) const {
    const Index rs = quotient(i, g->tap_channels), r = quotient(rs, g->taps_w);
    const int64_t h = r * g->tap_h, w = (rs - r * static_cast<Index>(g->taps_w.value)) * g->tap_w;
    const Index c = i - rs * static_cast<Index>(g->tap_channels.value);
    return {(h * g->width + w) * g->channels + c, static_cast<int32_t>(h), static_cast<int32_t>(w)};
  }
  PYSERVE_DEVICE const T* at(const Position& position, const Tap& tap) const {
    const int32_t h = position.h + tap.h, w = position.w + tap.w;
    return h >= 0 && h < g->height && w >= 0 && w < g->width ? tensor + position.offset + tap.offset : nullptr;
  }
  PYSERVE_DEVICE const T* any() const { return tensor; }  // an address that is valid and aligned
};

// left of the forward and dgrad products
template <class T>
struct PatchRows : Patches<T> {
  using Element = T;
  using Outer = Position;
  using Inner = Tap;
  static constexpr bool kInnerContiguous = true;
  template <class Index>
  PYSERVE_DEVICE Outer outer(Index i) const {
    return this->position(i);
  }
  template <class Index>
  PYSERVE_DEVICE Inner inner(Index i) const {
    return this->tap(i);
  }
};

// right of the wgrad product
template <class T>
struct PatchColumns : Patches<T> {
  using Element = T;
  using Outer = Tap;
  using Inner = Position;
  static constexpr bool kInnerContiguous = false;
  template <class Index>
  PYSERVE_DEVICE Outer outer(Index i) const {
    return this->tap(i);
  }
  template <class Index>
  PYSERVE_DEVICE Inner inner(Index i) const {
    return this->position(i);
  }
  PYSERVE_DEVICE const T* at(const Tap& tap, const Position& position) const { return Patches<T>::at(position, tap); }
};

// A 1×1 kernel without padding reads one pixel for each position, and each exists: nothing is left to find out in the
// loop over the sum but the channel.
template <class T>
struct Pixels {
  const T* tensor;  // at the group's first channel
  const PatchGeometry* g;

  template <class Index>
  PYSERVE_DEVICE int64_t pixel(Index i) const {
    if (g->step_h == 1 && g->step_w == 1) return i * g->channels;
    return Patches<T>{tensor, g}.position(i).offset;
  }
  PYSERVE_DEVICE const T* at(int64_t outer, int64_t inner) const { return tensor + outer + inner; }
  PYSERVE_DEVICE const T* any() const { return tensor; }
};

// left of the forward product
template <class T>
struct PixelRows : Pixels<T> {
  using Element = T;
  using Outer = int64_t;
  using Inner = int64_t;
  static constexpr bool kInnerContiguous = true;
  template <class Index>
  PYSERVE_DEVICE Outer outer(Index i) const {
    return this->pixel(i);
  }
  PYSERVE_DEVICE Inner inner(int64_t channel) const { return channel; }
};

// right of the wgrad product
template <class T>
struct PixelColumns : Pixels<T> {
  using Element = T;
  using Outer = int64_t;
  using Inner = int64_t;
  static constexpr bool kInnerContiguous = false;
  PYSERVE_DEVICE Outer outer(int64_t channel) const { return channel; }
  template <class Index>
  PYSERVE_DEVICE Inner inner(Index i) const {
    return this->pixel(i);
  }
};

// A dense matrix of which every element exists: right of the forward product, left of the wgrad product, and both of
// the dgrad product of a 1×1 kernel.
template <class T, bool inner_contiguous>
struct Dense {
  using Element = T;
  using Outer = int64_t;
  using Inner = int64_t;
  static constexpr bool kInnerContiguous = inner_contiguous;
  const T* start;
  int64_t stride;  // of the side that is not contiguous
  PYSERVE_DEVICE Outer outer(int64_t i) const { return inner_contiguous ? i * stride : i; }
  PYSERVE_DEVICE Inner inner(int64_t i) const { return inner_contiguous ? i : i * stride; }
  PYSERVE_DEVICE const T* at(Outer outer, Inner inner) const { return start + outer + inner; }
  PYSERVE_DEVICE const T* any() const { return start; }
};

// ------------------------------------------------------------ dgrad

// The rows (or columns) h of x with (h + pad) mod stride = a are read through the taps r with r·dilation mod stride =
// a, all others pass them by: with a stride the gradient of x falls apart into stride_h × stride_w products without
// one. Row number i of a class is first + i·stride; its tap number j is r = first_tap + j·tap_step and lies at output
// row start + i - j·tap.
struct ResidueClass {
  int64_t first, count, start;
  int64_t first_tap, tap_step, taps, tap;

  ResidueClass(int64_t a, int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    first = ((a - pad) % stride + stride) % stride;
    count = first < size ? (size - first + stride - 1) / stride : 0;
    tap_step = stride / std::gcd(stride, dilation);
    first_tap = 0;
    while (first_tap < tap_step && first_tap * dilation % stride != a) ++first_tap;
    taps = first_tap < tap_step && first_tap < kernel ? (kernel - first_tap + tap_step - 1) / tap_step : 0;
    tap = tap_step * dilation / stride;
    start = taps == 0 ? 0 : (first + pad - first_tap * dilation) / stride;
  }
};

// right of the dgrad product: weight [k][r][s][c] with the sum over (tap of the class, k).
template <class T>
struct WeightColumns {
  using Element = T;
  using Outer = int64_t;
  using Inner = int64_t;
  static constexpr bool kInnerContiguous = false;
  const T* weight;  // of the group's first filter, at the class' first tap
  Divisor filters, taps_w;
  int64_t filter_stride, tap_stride_h, tap_stride_w;
  PYSERVE_DEVICE Outer outer(int64_t c) const { return c; }
  template <class Index>
  PYSERVE_DEVICE Inner inner(Index i) const {
    const Index rs = quotient(i, filters), r = quotient(rs, taps_w);
    const Index k = i - rs * static_cast<Index>(filters.value), s = rs - r * static_cast<Index>(taps_w.value);
    return k * filter_stride + r * tap_stride_h + s * tap_stride_w;
  }
  PYSERVE_DEVICE const T* at(Outer outer, Inner inner) const { return weight + outer + inner; }
  PYSERVE_DEVICE const T* any() const { return weight; }
};

// ------------------------------------------------------------ the operands of a problem

inline PatchGeometry forward_patches(const Conv2dProblem& p) {
  return {p.H,      p.W,      p.C,          Divisor(p.P),         Divisor(p.Q), p.stride_h,  p.stride_w,
          -p.pad_h, -p.pad_w, Divisor(p.S), Divisor(p.group_c()), p.dilation_h, p.dilation_w};
}

inline PatchGeometry dgrad_patches(const Conv2dProblem& p, const ResidueClass& h, const ResidueClass& w) {
  return {p.P,   p.Q,     p.K,     Divisor(h.count), Divisor(w.count),     1,
          1,     h.start, w.start, Divisor(w.taps),  Divisor(p.group_k()), -h.tap,
          -w.tap};
}

}  // namespace pyserve
