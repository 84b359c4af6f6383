// The convolution and its gradients as products: operands (conv2d_operands.h), and what becomes of each sum.
#pragma once
#include <algorithm>

#include "conv2d_operands.h"
#include "product.h"

namespace pyserve {

template <class T>
struct ForwardProduct : ProductSizes {
  using Left = PatchRows<T>;
  using Right = Dense<T, true>;
  Conv2dArgs args;
  PatchGeometry patches;
  int64_t K;
  Accumulator<T> lo, hi;

  ForwardProduct(const Conv2dProblem& p, const Conv2dArgs& args)
      : ProductSizes(p.N * p.P * p.Q, p.group_k(), p.R * p.S * p.group_c(), p.groups),
        args(args),
        patches(forward_patches(p)),
        K(p.K),
        lo(static_cast<Accumulator<T>>(p.clamp.lo)),
        hi(static_cast<Accumulator<T>>(p.clamp.hi)) {}

  PYSERVE_DEVICE Left left(int64_t group) const {
    return {{static_cast<const T*>(args.x) + group * patches.tap_channels.value, &patches}};
  }
  PYSERVE_DEVICE Right right(int64_t group) const {
    return {static_cast<const T*>(args.weight) + group * columns * inner, inner};
  }
  PYSERVE_DEVICE void store(int64_t group, int64_t, int64_t row, int64_t column, Accumulator<T> sum) const {
    const int64_t filter = group * columns + column, at = row * K + filter;
    if (args.bias != nullptr) sum += widen(device::load(static_cast<const T*>(args.bias) + filter));
    if (args.residual != nullptr) sum += widen(device::load(static_cast<const T*>(args.residual) + at));
    device::store(static_cast<T*>(args.y) + at, narrow<T>(clamp(sum, lo, hi)));
  }
};

// Of one class of rows and columns of x.
template <class T>
struct DgradProduct : ProductSizes {
  using Left = PatchRows<T>;
  using Right = WeightColumns<T>;
  Conv2dDgradArgs args;
  PatchGeometry patches;
  Right first_group;
  int64_t W, C, image, row_step, column_step, first_row, first_column;

  DgradProduct(const Conv2dProblem& p, const Conv2dDgradArgs& args, const ResidueClass& h, const ResidueClass& w)
      : ProductSizes(p.N * h.count * w.count, p.group_c(), h.taps * w.taps * p.group_k(), p.groups),
        args(args),
        patches(dgrad_patches(p, h, w)),
        first_group{static_cast<const T*>(args.weight) + (h.first_tap * p.S + w.first_tap) * p.group_c(),
                    Divisor(p.group_k()),
                    Divisor(w.taps),
                    p.R * p.S * p.group_c(),
                    h.tap_step * p.S * p.group_c(),
                    w.tap_step * p.group_c()},
        W(p.W),
        C(p.C),
        image(p.H * p.W),
        row_step(p.stride_h),
        column_step(p.stride_w),
        first_row(h.first),
        first_column(w.first) {}

  PYSERVE_DEVICE Left left(int64_t group) const {
    return {{static_cast<const T*>(args.grad) + group * patches.tap_channels.value, &patches}};
  }
  PYSERVE_DEVICE Right right(int64_t group) const {
    Right right = first_group;
    right.weight += group * patches.tap_channels.value * right.filter_stride;
    return right;
  }
  PYSERVE_DEVICE void store(int64_t group, int64_t, int64_t row, int64_t column, Accumulator<T> sum) const {
    const int64_t line = quotient(row, patches.rows_w), n = quotient(line, patches.rows_h);
    const int64_t h = first_row + (line - n * patches.rows_h.value) * row_step;
    const int64_t w = first_column + (row - line * patches.rows_w.value) * column_step;
    device::store(static_cast<T*>(args.dx) + (n * image + h * W + w) * C + group * columns + column, narrow<T>(sum));
  }
};

// Calls f for every class of rows and columns of x that there are.
template <class F>
void for_each_residue(const Conv2dProblem& p, F&& f) {
  for (int64_t a = 0; a < std::min(p.stride_h, p.H); ++a)
    for (int64_t b = 0; b < std::min(p.stride_w, p.W); ++b) {
      const int64_t at_h = (a + p.pad_h) % p.stride_h, at_w = (b + p.pad_w) % p.stride_w;
      f(ResidueClass(at_h, p.H, p.R, p.stride_h, p.pad_h, p.dilation_h),
        ResidueClass(at_w, p.W, p.S, p.stride_w, p.pad_w, p.dilation_w));
    }
}

// Few results, each a long sum: it is cut into parts, whose sums go to `parts` [splits][K·R·S·C/groups].
template <class T>
struct WgradProduct : ProductSizes {
  using Left = Dense<T, false>;
  using Right = PatchColumns<T>;
  Conv2dWgradArgs args;
  PatchGeometry patches;
  int64_t K;
  Accumulator<T>* parts = nullptr;  // where there is one part, it is the result

  WgradProduct(const Conv2dProblem& p, const Conv2dWgradArgs& args)
      : ProductSizes(p.group_k(), p.R * p.S * p.group_c(), p.N * p.P * p.Q, p.groups),
        args(args),
        patches(forward_patches(p)),
        K(p.K) {}

  PYSERVE_DEVICE Left left(int64_t group) const { return {static_cast<const T*>(args.grad) + group * rows, K}; }
  PYSERVE_DEVICE Right right(int64_t group) const {
    return {{static_cast<const T*>(args.x) + group * patches.tap_channels.value, &patches}};
  }
  PYSERVE_DEVICE void store(int64_t group, int64_t split, int64_t row, int64_t column, Accumulator<T> sum) const {
    const int64_t at = (group * rows + row) * columns + column;
    if (parts == nullptr) return device::store(static_cast<T*>(args.dw) + at, narrow<T>(sum));
    device::store(parts + split * K * columns + at, sum);
  }
};

// Parts of at least 256 positions, as many as fill a GPU: a function of the problem alone, so that the sums' order is.
inline int64_t wgrad_splits(int64_t tiles, int64_t positions) {
  return std::max<int64_t>(1, std::min<int64_t>(512 / tiles, positions / 256));
}

// ------------------------------------------------------------ the sum of the parts

constexpr int32_t kSumThreads = 256;

// y[i] = Σ parts[split][i], in the order of the parts.
template <class T>
PYSERVE_KERNEL(kSumThreads, 2)
sum_parts_kernel(const Accumulator<T>* parts, int64_t splits, int64_t size, T* y) {
  const int64_t step = device::grid_size() * kSumThreads;
  for (int64_t i = device::block_index() * kSumThreads + device::thread_index(); i < size; i += step) {
    Accumulator<T> sum = 0;
    for (int64_t split = 0; split < splits; ++split) sum += device::load(parts + split * size + i);
    device::store(y + i, narrow<T>(sum));
  }
}

template <class T>
void sum_parts(const Accumulator<T>* parts, int64_t splits, int64_t size, T* y, const Queue& queue) {
  const int64_t blocks = std::min<int64_t>((size + kSumThreads - 1) / kSumThreads, int64_t{1} << 16);
  device::launch(sum_parts_kernel<T>, blocks, kSumThreads, 0, queue, parts, splits, size, y);
}

}  // namespace pyserve
