// The convolution and its gradients as matrix products, sums over `inner` of left(outer row, inner) × right(inner,
// outer column): what the two matrices are, without ever being written out (implicit GEMM).
//
//             rows               columns             inner
//   forward   positions of y     filters             taps × channels     left = x, right = weight
//   dgrad     positions of x     channels            taps × filters      left = grad, right = weight
//   wgrad     filters            taps × channels     positions of y      left = grad, right = x
//
// An operand says of each index along its outer and inner side, by itself, where in memory it points; `at` puts the two
// together, or gives null in the padding. kInnerContiguous: neighbours along the sum are neighbours in memory.
// Everything here is of one group; the launchers of the products loop over groups.
#pragma once
#include "../conv2d.h"
#include "element.h"

namespace pyserve {

// A position of the output: image, and the input's row and column under tap (0, 0). Padding makes the latter negative.
// Offsets are 64-bit; coordinates along one axis are 32-bit, see covers_axes().
struct Position {
  int64_t offset;
  int32_t h, w;
};
// A tap and a channel: what they add to a position.
struct Tap {
  int64_t offset;
  int32_t h, w;
};

// The elements of x that the output positions read through the taps. Index of a tap: (r, s, c).
template <class T>
struct ImagePatches {
  const T* x;
  const Conv2dProblem* p;
  int64_t first_channel;

  PYSERVE_DEVICE Position position(int64_t i) const {
    const int64_t row = quotient(i, p->Q), n = quotient(row, p->P);
    const int64_t h = (row - n * p->P) * p->stride_h - p->pad_h, w = (i - row * p->Q) * p->stride_w - p->pad_w;
    return {((n * p->H + h) * p->W + w) * p->C + first_channel, static_cast<int32_t>(h), static_cast<int32_t>(w)};
  }
  PYSERVE_DEVICE Tap tap(int64_t i) const {
    const int64_t C = p->group_c(), rs = quotient(i, C), r = quotient(rs, p->S);
    const int64_t h = r * p->dilation_h, w = (rs - r * p->S) * p->dilation_w;
    return {(h * p->W + w) * p->C + i - rs * C, static_cast<int32_t>(h), static_cast<int32_t>(w)};
  }
  PYSERVE_DEVICE const T* at(const Position& position, const Tap& tap) const {
    const int32_t h = position.h + tap.h, w = position.w + tap.w;
    return h >= 0 && h < p->H && w >= 0 && w < p->W ? x + position.offset + tap.offset : nullptr;
  }
};

// left of the forward product
template <class T>
struct PatchRows : ImagePatches<T> {
  using Element = T;
  using Outer = Position;
  using Inner = Tap;
  static constexpr bool kInnerContiguous = true;
  PYSERVE_DEVICE Outer outer(int64_t i) const { return this->position(i); }
  PYSERVE_DEVICE Inner inner(int64_t i) const { return this->tap(i); }
};

// right of the wgrad product
template <class T>
struct PatchColumns : ImagePatches<T> {
  using Element = T;
  using Outer = Tap;
  using Inner = Position;
  static constexpr bool kInnerContiguous = false;
  PYSERVE_DEVICE Outer outer(int64_t i) const { return this->tap(i); }
  PYSERVE_DEVICE Inner inner(int64_t i) const { return this->position(i); }
  PYSERVE_DEVICE const T* at(const Tap& tap, const Position& position) const {
    return ImagePatches<T>::at(position, tap);
  }
};

// left of the dgrad product: the gradients of the output positions that read a position of x. Index along the sum:
// (r, s, k).
template <class T>
struct GradPatches {
  using Element = T;
  using Outer = Position;
  using Inner = Tap;
  static constexpr bool kInnerContiguous = true;
  const T* grad;
  const Conv2dProblem* p;
  int64_t first_filter;

  PYSERVE_DEVICE Outer outer(int64_t i) const {
    const int64_t row = quotient(i, p->W), n = quotient(row, p->H);
    return {n * p->P * p->Q * p->K + first_filter, static_cast<int32_t>(row - n * p->H + p->pad_h),
            static_cast<int32_t>(i - row * p->W + p->pad_w)};
  }
  PYSERVE_DEVICE Inner inner(int64_t i) const {
    const int64_t K = p->group_k(), rs = quotient(i, K), r = quotient(rs, p->S);
    return {i - rs * K, static_cast<int32_t>(r * p->dilation_h), static_cast<int32_t>((rs - r * p->S) * p->dilation_w)};
  }
  PYSERVE_DEVICE const T* at(const Position& position, const Tap& tap) const {
    const int32_t h = position.h - tap.h, w = position.w - tap.w;
    if (h < 0 || w < 0) return nullptr;
    const int64_t P = quotient(h, p->stride_h), Q = quotient(w, p->stride_w);
    if (P >= p->P || Q >= p->Q || P * p->stride_h != h || Q * p->stride_w != w) return nullptr;
    return grad + position.offset + (P * p->Q + Q) * p->K + tap.offset;
  }
};

// A dense matrix of which every element exists.
template <class T, bool inner_contiguous>
struct Dense {
  using Element = T;
  using Outer = int64_t;
  using Inner = int64_t;
  static constexpr bool kInnerContiguous = inner_contiguous;
  const T* start;
  int64_t outer_stride, inner_stride;
  PYSERVE_DEVICE Outer outer(int64_t i) const { return i * outer_stride; }
  PYSERVE_DEVICE Inner inner(int64_t i) const { return i * inner_stride; }
  PYSERVE_DEVICE const T* at(Outer outer, Inner inner) const { return start + outer + inner; }
};

// right of the dgrad product: weight [k][r][s][c] with the sum over (r, s, k).
template <class T>
struct WeightColumns {
  using Element = T;
  using Outer = int64_t;
  using Inner = int64_t;
  static constexpr bool kInnerContiguous = false;
  const T* weight;  // of the group's first filter
  const Conv2dProblem* p;
  PYSERVE_DEVICE Outer outer(int64_t c) const { return c; }
  PYSERVE_DEVICE Inner inner(int64_t i) const {
    const int64_t K = p->group_k(), rs = quotient(i, K);
    return ((i - rs * K) * p->R * p->S + rs) * p->group_c();
  }
  PYSERVE_DEVICE const T* at(Outer outer, Inner inner) const { return weight + outer + inner; }
};

}  // namespace pyserve
