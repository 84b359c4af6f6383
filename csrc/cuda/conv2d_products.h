// The convolution and its gradients as products: operands (conv2d_operands.h), and what becomes of each sum. Pointwise
// ones are those of 1×1 kernels without padding, whose operands are plain matrices.
#pragma once
#include <algorithm>

#include "channel_sums.cuh"
#include "conv2d_operands.h"
#include "product.h"
#include "vector_access.h"

namespace pyserve {

template <class T, bool pointwise = false>
struct ForwardProduct : ProductSizes {
  using Left = std::conditional_t<pointwise, PixelRows<T>, PatchRows<T>>;
  using Right = Dense<T, true>;
  static constexpr bool kMasksLeft = false, kGivesMoments = true;
  Conv2dArgs args;
  PatchGeometry patches;
  float* moments = nullptr;  // of y's channels, tile by tile, where they are wanted: parts of channels::MergeMoments
  int64_t K;
  Accumulator<T> lo, hi;
  bool wide;

  ForwardProduct(const Conv2dProblem& p, const Conv2dArgs& args)
      : ProductSizes(p.N * p.P * p.Q, p.group_k(), p.R * p.S * p.group_c(), p.groups),
        args(args),
        patches(forward_patches(p)),
        K(p.K),
        lo(static_cast<Accumulator<T>>(p.clamp.lo)),
        hi(static_cast<Accumulator<T>>(p.clamp.hi)),
        wide(columns % kWide<T> == 0 && aligned(args.y) && aligned(args.bias) && aligned(args.residual)) {}

  // Before and after the tiles of so many rows.
  void make_moments(int64_t tile_rows, const Queue& queue) {
    if (args.mean != nullptr) moments = queue.scratch<float>((rows + tile_rows - 1) / tile_rows * 2 * K);
  }
  void merge_moments(int64_t tile_rows, const Queue& queue) const {
    const int64_t parts = (rows + tile_rows - 1) / tile_rows;
    if (args.mean != nullptr) channels::merge_moments(moments, parts, tile_rows, rows, K, args.mean, args.var, queue);
  }

  PYSERVE_DEVICE Left left(int64_t group) const {
    return {{static_cast<const T*>(args.x) + group * patches.tap_channels.value, &patches}};
  }
  PYSERVE_DEVICE Right right(int64_t group) const {
    return {static_cast<const T*>(args.weight) + group * columns * inner, inner};
  }
  template <int32_t count>
  PYSERVE_DEVICE void store(int64_t group, int64_t, int64_t row, int64_t column, Accumulator<T> (&sums)[count]) const {
    const int64_t filter = group * columns + column, at = row * K + filter, left = columns - column;
    Accumulator<T> added[count];
    if (args.bias != nullptr) {
      read(static_cast<const T*>(args.bias), filter, filter + left, wide, added);
#pragma unroll
      for (int32_t j = 0; j < count; ++j) sums[j] += added[j];
    }
    if (args.residual != nullptr) {
      read(static_cast<const T*>(args.residual), at, at + left, wide, added);
#pragma unroll
      for (int32_t j = 0; j < count; ++j) sums[j] += added[j];
    }
#pragma unroll
    for (int32_t j = 0; j < count; ++j) sums[j] = clamp(sums[j], lo, hi);
    write(static_cast<T*>(args.y), at, at + left, wide, sums);
  }
  PYSERVE_DEVICE Accumulator<T> bias_of(int64_t group, int64_t column) const {
    if (args.bias == nullptr || column >= columns) return 0;
    return widen(device::load(static_cast<const T*>(args.bias) + group * columns + column));
  }
  PYSERVE_DEVICE void store_moments(int64_t tile_row, int64_t group, int64_t column, float mean, float squares) const {
    float* const at = moments + tile_row * 2 * K + group * columns + column;
    device::store(at, mean);
    device::store(at + K, squares);
  }
};

// The activation's mask on a gradient: which of its elements pass is seen in y, which is laid out as the gradient is.
template <class T>
struct GradientMask {
  bool wanted;
  Accumulator<T> lo, hi;
  int64_t distance;  // from an element of grad to that of y

  GradientMask(const Conv2dProblem& p, const void* grad, const void* y)
      : wanted(y != nullptr),
        lo(static_cast<Accumulator<T>>(p.clamp.mask_lo())),
        hi(static_cast<Accumulator<T>>(p.clamp.mask_hi())),
        distance(wanted ? (reinterpret_cast<intptr_t>(y) - reinterpret_cast<intptr_t>(grad)) / intptr_t{sizeof(T)}
                        : 0) {}
};

// Of one class of rows and columns of x.
template <class T, bool pointwise = false>
struct DgradProduct : ProductSizes {
  using Left = std::conditional_t<pointwise, Dense<T, true>, PatchRows<T>>;
  using Right = std::conditional_t<pointwise, Dense<T, false>, WeightColumns<T>>;
  static constexpr bool kMasksLeft = true, kGivesMoments = false;
  Conv2dDgradArgs args;
  GradientMask<T> mask;
  PatchGeometry patches;
  WeightColumns<T> first_group;
  int64_t W, C, image, row_step, column_step, first_row, first_column;
  bool wide;

  // `channels` of dx: fewer than those of p where p is padded.
  DgradProduct(const Conv2dProblem& p, const Conv2dDgradArgs& args, const ResidueClass& h, const ResidueClass& w,
               int64_t channels)
      : ProductSizes(p.N * h.count * w.count, channels / p.groups, h.taps * w.taps * p.group_k(), p.groups),
        args(args),
        mask(p, args.grad, args.y),
        patches(dgrad_patches(p, h, w)),
        first_group{static_cast<const T*>(args.weight) + (h.first_tap * p.S + w.first_tap) * p.group_c(),
                    Divisor(p.group_k()),
                    Divisor(w.taps),
                    p.R * p.S * p.group_c(),
                    h.tap_step * p.S * p.group_c(),
                    w.tap_step * p.group_c()},
        W(p.W),
        C(channels),
        image(p.H * p.W),
        row_step(p.stride_h),
        column_step(p.stride_w),
        first_row(h.first),
        first_column(w.first),
        wide(columns % kWide<T> == 0 && aligned(args.dx)) {}

  PYSERVE_DEVICE Left left(int64_t group) const {
    const T* grad = static_cast<const T*>(args.grad) + group * patches.tap_channels.value;
    if constexpr (pointwise) {
      return {grad, patches.channels};
    } else {
      return {{grad, &patches}};
    }
  }
  PYSERVE_DEVICE Right right(int64_t group) const {
    const T* weight = first_group.weight + group * patches.tap_channels.value * first_group.filter_stride;
    if constexpr (pointwise) {
      return {weight, first_group.filter_stride};
    } else {
      Right right = first_group;
      right.weight = weight;
      return right;
    }
  }
  template <int32_t count>
  PYSERVE_DEVICE void store(int64_t group, int64_t, int64_t row, int64_t column, Accumulator<T> (&sums)[count]) const {
    int64_t pixel = row;
    if (row_step > 1 || column_step > 1) {
      const int64_t line = quotient(row, patches.rows_w), n = quotient(line, patches.rows_h);
      const int64_t h = first_row + (line - n * patches.rows_h.value) * row_step;
      pixel = n * image + h * W + first_column + (row - line * patches.rows_w.value) * column_step;
    }
    const int64_t start = pixel * C + group * columns;
    write(static_cast<T*>(args.dx), start + column, start + columns, wide, sums);
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
template <class T, bool pointwise = false>
struct WgradProduct : ProductSizes {
  using Left = Dense<T, false>;
  using Right = std::conditional_t<pointwise, PixelColumns<T>, PatchColumns<T>>;
  static constexpr bool kMasksLeft = true, kGivesMoments = false;
  Conv2dWgradArgs args;
  GradientMask<T> mask;
  PatchGeometry patches;
  int64_t K, grad_channels;
  Accumulator<T>* parts = nullptr;       // where there is one part, it is the result
  Accumulator<T>* bias_parts = nullptr;  // [splits][K]: the sums of grad, where they are wanted
  bool wide;

  // `channels` of grad: more than the filters where grad is padded.
  WgradProduct(const Conv2dProblem& p, const Conv2dWgradArgs& args, int64_t channels)
      : ProductSizes(p.group_k(), p.R * p.S * p.group_c(), p.N * p.P * p.Q, p.groups),
        args(args),
        mask(p, args.grad, args.y),
        patches(forward_patches(p)),
        K(p.K),
        grad_channels(channels),
        wide(columns % kWide<T> == 0 && aligned(args.dw)) {}

  PYSERVE_DEVICE Left left(int64_t group) const {
    return {static_cast<const T*>(args.grad) + group * rows, grad_channels};
  }
  PYSERVE_DEVICE Right right(int64_t group) const {
    return {{static_cast<const T*>(args.x) + group * patches.tap_channels.value, &patches}};
  }
  template <int32_t count>
  PYSERVE_DEVICE void store(int64_t group, int64_t split, int64_t row, int64_t column,
                            Accumulator<T> (&sums)[count]) const {
    const int64_t start = (group * rows + row) * columns;
    if (parts == nullptr) return write(static_cast<T*>(args.dw), start + column, start + columns, wide, sums);
    Accumulator<T>* part = parts + split * K * columns;
    write(part, start + column, start + columns, columns % kWide<Accumulator<T>> == 0, sums);
  }
  PYSERVE_DEVICE void store_row_sum(int64_t group, int64_t split, int64_t row, Accumulator<T> sum) const {
    device::store(bias_parts + split * K + group * rows + row, sum);
  }
};

// Parts of at least 256 positions, as many as fill a GPU: a function of the problem alone, so that the sums' order is.
inline int64_t wgrad_splits(int64_t tiles, int64_t positions) {
  return std::max<int64_t>(1, std::min<int64_t>(512 / tiles, positions / 256));
}

// ------------------------------------------------------------ the sum of the parts

constexpr int32_t kSumThreads = 256;

// y [rows][channels] = Σ parts[split] [rows][part_channels], in the order of the parts.
template <class T>
PYSERVE_KERNEL(kSumThreads, 2)
sum_parts_kernel(const Accumulator<T>* parts, int64_t splits, int64_t rows, PYSERVE_PARAMETER Divisor channels,
                 int64_t part_channels, T* y) {
  const int64_t step = device::grid_size() * kSumThreads, size = rows * channels.value;
  for (int64_t i = device::block_index() * kSumThreads + device::thread_index(); i < size; i += step) {
    const int64_t row = quotient(i, channels), at = row * part_channels + i - row * channels.value;
    Accumulator<T> sum = 0;
    for (int64_t split = 0; split < splits; ++split) sum += device::load(parts + split * rows * part_channels + at);
    device::store(y + i, narrow<T>(sum));
  }
}

template <class T>
void sum_parts(const Accumulator<T>* parts, int64_t splits, int64_t rows, int64_t channels, int64_t part_channels, T* y,
               const Queue& queue) {
  const int64_t blocks = std::min<int64_t>((rows * channels + kSumThreads - 1) / kSumThreads, int64_t{1} << 16);
  device::launch(sum_parts_kernel<T>, blocks, kSumThreads, 0, queue, parts, splits, rows, Divisor(channels),
                 part_channels, y);
}

}  // namespace pyserve
