// The convolution and its gradients on tensor cores, for bfloat16, float16, and float32 as TF32; sums are float32.
//
// Asynchronous copies take 16 bytes of neighbouring channels: where the channels do not come in such multiples, padded
// copies of the tensors are made first (of an image with up to 4 channels, as every first layer has, to 4: it is then
// copied 8 bytes at a time where that is fewer). `pointwise`: 1×1 kernels without padding.
#pragma once
#include "choose_tile.h"
#include "conv2d_products.h"
#include "pad_channels.cuh"
#include "product_mma.cuh"

namespace pyserve::mma {

using Large = Shape<128, 128, 64, 32, 3, 2>;
using LargeTf32 = Shape<128, 128, 32, 32, 3, 1>;
using Medium = Shape<128, 64, 64, 32, 4, 3>;
using Small = Shape<64, 64, 32, 32, 4, 4>;
using Narrow = Shape<128, 32, 32, 32, 4, 4>;
template <class T>
int64_t rounded_up(int64_t channels) {
  return (channels + kWide<T> - 1) / kWide<T> * kWide<T>;
}

// TF32 takes a register where two 16-bit elements share one. Its large tile has twice the warps, of half the rows each,
// which 64 × 32 sums a warp would not fit beside; for the gradient of weight a medium tile would spill.
template <int32_t kVector, bool kWgrad = false, class Product>
void run(Product& product, TileSize tile, int64_t splits, const Queue& queue) {
  constexpr bool kHalf = sizeof(typename Product::Left::Element) == 2;
  using Wider = std::conditional_t<kHalf || !kWgrad, Medium, Small>;
  using Widest = std::conditional_t<kHalf, Large, LargeTf32>;
  if (tile == TileSize::large) return run_product<Widest, kVector>(product, splits, queue);
  if (tile == TileSize::medium) return run_product<Wider, kVector>(product, splits, queue);
  if constexpr (!kWgrad) {
    if (tile == TileSize::narrow) return run_product<Narrow, kVector>(product, splits, queue);
  }
  run_product<Small, kVector>(product, splits, queue);
}

template <class Product>
TileSize tile_for(Op op, DType dtype, const Product& product, const Queue& queue) {
  return choose_tile(op, dtype, product.rows, product.columns, product.inner, product.groups, queue);
}

template <class T, bool pointwise = false>
void conv2d(Conv2dProblem p, Conv2dArgs args, const Queue& queue) {
  const bool few = !pointwise && sizeof(T) == 2 && p.C <= 4;
  const int64_t C = few ? 4 : rounded_up<T>(p.group_c()) * p.groups;
  args.x = padded<T>(args.x, p.N * p.H * p.W, p.C, p.N * p.H * p.W, C, queue);
  const int64_t taps = p.K * p.R * p.S;
  args.weight = padded<T>(args.weight, taps, p.group_c(), taps, C / p.groups, queue);
  p.C = C;
  ForwardProduct<T, pointwise> product(p, args);
  if constexpr (!pointwise && sizeof(T) == 2) {
    if (few) return run_product<Medium, 4>(product, 1, queue);
  }
  run<kWide<T>>(product, tile_for(Op::conv2d, p.dtype, product, queue), 1, queue);
}

template <class T, bool pointwise = false>
void conv2d_dgrad(const Conv2dProblem& p, Conv2dDgradArgs args, const Queue& queue) {
  Conv2dProblem wide = p;
  wide.C = rounded_up<T>(p.group_c()) * p.groups, wide.K = rounded_up<T>(p.group_k()) * p.groups;
  const int64_t positions = p.N * p.P * p.Q, taps = p.R * p.S;
  args.grad = padded<T>(args.grad, positions, p.K, positions, wide.K, queue);
  if (args.y != nullptr) args.y = padded<T>(args.y, positions, p.K, positions, wide.K, queue);
  args.weight = padded<T>(args.weight, p.K * taps, p.group_c(), wide.K * taps, wide.group_c(), queue);
  for_each_residue(p, [&](const ResidueClass& h, const ResidueClass& w) {
    DgradProduct<T, pointwise> product(wide, args, h, w, p.C);
    run<kWide<T>>(product, tile_for(Op::conv2d_dgrad, p.dtype, product, queue), 1, queue);
  });
}

template <class T, bool pointwise = false>
void conv2d_wgrad(const Conv2dProblem& p, Conv2dWgradArgs args, const Queue& queue) {
  Conv2dProblem wide = p;
  const bool few = !pointwise && sizeof(T) == 2 && p.C <= 4;
  wide.C = few ? 4 : rounded_up<T>(p.group_c()) * p.groups;
  const int64_t positions = p.N * p.P * p.Q, pixels = p.N * p.H * p.W, K = rounded_up<T>(p.group_k()) * p.groups;
  args.grad = padded<T>(args.grad, positions, p.K, positions, K, queue);
  if (args.y != nullptr) args.y = padded<T>(args.y, positions, p.K, positions, K, queue);
  args.x = padded<T>(args.x, pixels, p.C, pixels, wide.C, queue);
  WgradProduct<T, pointwise> product(wide, args, K);
  const TileSize tile = few ? TileSize::small : tile_for(Op::conv2d_wgrad, p.dtype, product, queue);
  const int64_t tile_rows = tile == TileSize::large || tile == TileSize::medium ? 128 : 64;
  const int64_t splits = wgrad_splits(product.tiles_of(tile_rows, tile == TileSize::large ? 128 : 64), product.inner);
  const bool direct = splits == 1 && wide.C == p.C;
  if (!direct) product.parts = queue.scratch<float>(splits * p.K * product.columns);
  if (args.dbias != nullptr) product.bias_parts = queue.scratch<float>(splits * p.K);
  if constexpr (!pointwise) {
    if (few) run_product<Small, 4>(product, splits, queue);
  }
  if (!few) run<kWide<T>, true>(product, tile, splits, queue);
  if (!direct)
    sum_parts(product.parts, splits, p.K * p.R * p.S, p.group_c(), wide.group_c(), static_cast<T*>(args.dw), queue);
  if (args.dbias != nullptr) sum_parts(product.bias_parts, splits, 1, p.K, p.K, static_cast<T*>(args.dbias), queue);
}

}  // namespace pyserve::mma
