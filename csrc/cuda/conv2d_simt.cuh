// The convolution and its gradients on plain FMA units: every element type, every problem. Sums are float32 (float64
// for float64), rounded once at the end.
#pragma once
#include <algorithm>

#include "conv2d_operands.h"
#include "product_simt.cuh"

namespace pyserve::simt {

// What the three products have in common: the problem, and the number of tiles, which run_product() fills in.
struct ProductSizes {
  Conv2dProblem p;
  int64_t rows, columns, inner, groups, splits, tiles;
};

template <class T>
struct ForwardProduct : ProductSizes {
  using Left = PatchRows<T>;
  using Right = Dense<T, true>;
  Conv2dArgs args;

  PYSERVE_DEVICE Left left(int64_t group) const { return {{static_cast<const T*>(args.x), &p, group * p.group_c()}}; }
  PYSERVE_DEVICE Right right(int64_t group) const {
    return {static_cast<const T*>(args.weight) + group * columns * inner, inner, 1};
  }
  PYSERVE_DEVICE void store(int64_t group, int64_t, int64_t row, int64_t column, Accumulator<T> sum) const {
    const int64_t filter = group * columns + column, at = row * p.K + filter;
    if (args.bias != nullptr) sum += widen(device::load(static_cast<const T*>(args.bias) + filter));
    if (args.residual != nullptr) sum += widen(device::load(static_cast<const T*>(args.residual) + at));
    const auto lo = static_cast<Accumulator<T>>(p.clamp.lo), hi = static_cast<Accumulator<T>>(p.clamp.hi);
    device::store(static_cast<T*>(args.y) + at, narrow<T>(clamp(sum, lo, hi)));
  }
};

template <class T>
struct DgradProduct : ProductSizes {
  using Left = GradPatches<T>;
  using Right = WeightColumns<T>;
  Conv2dDgradArgs args;

  PYSERVE_DEVICE Left left(int64_t group) const { return {static_cast<const T*>(args.grad), &p, group * p.group_k()}; }
  PYSERVE_DEVICE Right right(int64_t group) const {
    return {static_cast<const T*>(args.weight) + group * inner * columns, &p};
  }
  PYSERVE_DEVICE void store(int64_t group, int64_t, int64_t row, int64_t column, Accumulator<T> sum) const {
    device::store(static_cast<T*>(args.dx) + row * p.C + group * columns + column, narrow<T>(sum));
  }
};

// Few results, each a long sum: it is cut into `splits` parts, whose sums go to `parts` [splits][K·R·S·C/groups].
template <class T>
struct WgradProduct : ProductSizes {
  using Left = Dense<T, false>;
  using Right = PatchColumns<T>;
  Conv2dWgradArgs args;
  Accumulator<T>* parts;  // null where there is one part: it is the result

  PYSERVE_DEVICE Left left(int64_t group) const { return {static_cast<const T*>(args.grad) + group * rows, 1, p.K}; }
  PYSERVE_DEVICE Right right(int64_t group) const { return {{static_cast<const T*>(args.x), &p, group * p.group_c()}}; }
  PYSERVE_DEVICE void store(int64_t group, int64_t split, int64_t row, int64_t column, Accumulator<T> sum) const {
    const int64_t at = (group * rows + row) * columns + column;
    if (parts == nullptr) return device::store(static_cast<T*>(args.dw) + at, narrow<T>(sum));
    device::store(parts + split * p.K * columns + at, sum);
  }
};

// y[i] = Σ parts[split][i], in the order of the parts.
template <class T>
PYSERVE_KERNEL(kThreads, 2)
sum_parts_kernel(const Accumulator<T>* parts, int64_t splits, int64_t size, T* y) {
  const int64_t step = device::grid_size() * kThreads;
  for (int64_t i = device::block_index() * kThreads + device::thread_index(); i < size; i += step) {
    Accumulator<T> sum = 0;
    for (int64_t split = 0; split < splits; ++split) sum += device::load(parts + split * size + i);
    device::store(y + i, narrow<T>(sum));
  }
}

template <class T>
void conv2d(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  ForwardProduct<T> product{{p, p.N * p.P * p.Q, p.group_k(), p.R * p.S * p.group_c(), p.groups, 1, 0}, args};
  run_product(product, queue);
}

template <class T>
void conv2d_dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Queue& queue) {
  DgradProduct<T> product{{p, p.N * p.H * p.W, p.group_c(), p.R * p.S * p.group_k(), p.groups, 1, 0}, args};
  run_product(product, queue);
}

// Parts of at least 256 positions, as many as fill a GPU: a function of the problem alone, so that the sums' order is.
inline int64_t wgrad_splits(int64_t tiles, int64_t positions) {
  return std::max<int64_t>(1, std::min<int64_t>(512 / tiles, positions / 256));
}

template <class T>
void conv2d_wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Queue& queue) {
  const int64_t size = p.K * p.R * p.S * p.group_c();
  WgradProduct<T> product{{p, p.group_k(), p.R * p.S * p.group_c(), p.N * p.P * p.Q, p.groups, 1, 0}, args, nullptr};
  product.splits = wgrad_splits(tiles(product), product.inner);
  if (product.splits > 1) product.parts = queue.scratch<Accumulator<T>>(product.splits * size);
  run_product(product, queue);
  if (product.splits == 1) return;
  const int64_t blocks = std::min<int64_t>((size + kThreads - 1) / kThreads, kMostBlocks);
  device::launch(sum_parts_kernel<T>, blocks, kThreads, 0, queue, product.parts, product.splits, size,
                 static_cast<T*>(args.dw));
}

}  // namespace pyserve::simt
