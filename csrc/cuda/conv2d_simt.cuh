// The convolution and its gradients on plain FMA units: every element type, every problem. Sums are float32 (float64
// for float64), rounded once at the end.
#pragma once
#include "conv2d_products.h"
#include "product_simt.cuh"

namespace pyserve::simt {

template <class T>
void conv2d(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  ForwardProduct<T> product(p, args);
  product.cut(kTile, kTile, kDepth, 1);
  run_product(product, queue);
}

template <class T>
void conv2d_dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Queue& queue) {
  for_each_residue(p, [&](const ResidueClass& h, const ResidueClass& w) {
    DgradProduct<T> product(p, args, h, w, p.C);
    product.cut(kTile, kTile, kDepth, 1);
    run_product(product, queue);
  });
}

template <class T>
void conv2d_wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Queue& queue) {
  WgradProduct<T> product(p, args, p.K);
  const int64_t splits = wgrad_splits(product.tiles_of(kTile, kTile), product.inner);
  product.cut(kTile, kTile, kDepth, splits);
  if (splits > 1) product.parts = queue.scratch<Accumulator<T>>(splits * p.K * product.columns);
  run_product(product, queue);
  if (splits > 1)
    sum_parts(product.parts, splits, p.K * p.R * p.S, p.group_c(), p.group_c(), static_cast<T*>(args.dw), queue);
}

}  // namespace pyserve::simt
