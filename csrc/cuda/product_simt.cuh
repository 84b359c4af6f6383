// A tiled matrix product on plain FMA units. What is multiplied, and where the results go, is the `Product`:
//
//   Left, Right                  operands (conv2d_operands.h)
//   ProductSizes                 base class: sizes, and how they are cut into tiles
//   left(group), right(group)
//   store(group, split, row, column, sums)   of neighbouring columns; those beyond the last are to be left out
//
// A block of 256 threads computes a tile of 64 × 64 results, each thread 4 × 4 of them in registers, from tiles of 16
// along the sum in shared memory. The next tiles are fetched into registers while the current ones are multiplied.
#pragma once
#include "product.h"

namespace pyserve::simt {

constexpr int32_t kThreads = 256, kTile = 64, kDepth = 16, kSide = 4;
constexpr int32_t kPitch = kTile + 4;  // of a tile's row in shared memory: fewer bank conflicts, still 16-byte aligned
constexpr int64_t kMostBlocks = int64_t{1} << 20;  // more tiles than this: blocks take several

// A thread's four elements of each kTile × kDepth tile of an operand. Neighbouring threads take neighbours in memory.
template <class Operand>
class TileLoader {
  using T = typename Operand::Element;
  using Acc = Accumulator<T>;
  static constexpr bool kInnerContiguous = Operand::kInnerContiguous;
  static constexpr int32_t kOuters = kInnerContiguous ? kSide : 1, kInners = kSide / kOuters;
  static constexpr int32_t kOuterStep = kThreads / kDepth, kInnerStep = kThreads / kTile;

 public:
  PYSERVE_DEVICE TileLoader(const Operand& operand, int64_t first, int64_t size) : operand_(operand) {
    const int32_t thread = device::thread_index();
    outer_at_ = kInnerContiguous ? thread / kDepth : thread % kTile;
    inner_at_ = kInnerContiguous ? thread % kDepth : thread / kTile;
#pragma unroll
    for (int32_t i = 0; i < kOuters; ++i) {
      const int64_t index = first + outer_at_ + i * kOuterStep;
      exists_[i] = index < size;
      outer_[i] = operand_.outer(exists_[i] ? index : 0);
    }
  }

  // Into registers: the elements [begin, begin + kDepth) along the sum, zeros from `end` on.
  PYSERVE_DEVICE void fetch(int64_t begin, int64_t end) {
#pragma unroll
    for (int32_t k = 0; k < kInners; ++k) {
      const int64_t index = begin + inner_at_ + k * kInnerStep;
      const typename Operand::Inner inner = operand_.inner(index < end ? index : begin);
#pragma unroll
      for (int32_t i = 0; i < kOuters; ++i) {
        const T* from = exists_[i] && index < end ? operand_.at(outer_[i], inner) : nullptr;
        values_[k + i] = from != nullptr ? widen(device::load(from)) : Acc(0);
      }
    }
  }

  // From registers into tile [kDepth][kPitch].
  PYSERVE_DEVICE void put(Acc* tile) const {
#pragma unroll
    for (int32_t k = 0; k < kInners; ++k)
#pragma unroll
      for (int32_t i = 0; i < kOuters; ++i)
        device::store_shared(tile + (inner_at_ + k * kInnerStep) * kPitch + outer_at_ + i * kOuterStep, values_[k + i]);
  }

 private:
  Operand operand_;
  typename Operand::Outer outer_[kOuters];
  bool exists_[kOuters];
  int32_t outer_at_, inner_at_;
  Acc values_[kSide];
};

// sums += left tile × right tile, for this thread's rows and columns.
template <class Acc>
PYSERVE_DEVICE void multiply(const Acc* left, const Acc* right, Acc (&sums)[kSide][kSide]) {
  using Four = device::Vector<Acc, kSide>;
#pragma unroll 4  // all of it would take more registers than two blocks have
  for (int32_t k = 0; k < kDepth; ++k) {
    const Four a = device::load_shared(reinterpret_cast<const Four*>(left + k * kPitch));
    const Four b = device::load_shared(reinterpret_cast<const Four*>(right + k * kPitch));
#pragma unroll
    for (int32_t i = 0; i < kSide; ++i)
#pragma unroll
      for (int32_t j = 0; j < kSide; ++j) sums[i][j] += a.at[i] * b.at[j];
  }
}

template <class Product>
PYSERVE_DEVICE void tile_of(const Product& product, int64_t tile) {
  using Acc = Accumulator<typename Product::Left::Element>;
  const int64_t above = quotient(tile, product.column_tiles), outside = quotient(above, product.row_tiles);
  const int64_t column = (tile - above * product.column_tiles.value) * kTile;
  const int64_t row = (above - outside * product.row_tiles.value) * kTile;
  const int64_t group = quotient(outside, product.splits), split = outside - group * product.splits.value;
  const int64_t begin = split * product.share;
  const int64_t end = begin + product.share < product.inner ? begin + product.share : product.inner;

  Acc* const left_tile = reinterpret_cast<Acc*>(device::shared_memory());
  Acc* const right_tile = left_tile + kDepth * kPitch;
  const int32_t row_at = device::thread_index() / (kTile / kSide) * kSide;
  const int32_t column_at = device::thread_index() % (kTile / kSide) * kSide;
  TileLoader<typename Product::Left> left(product.left(group), row, product.rows);
  TileLoader<typename Product::Right> right(product.right(group), column, product.columns);
  Acc sums[kSide][kSide] = {};
  left.fetch(begin, end);
  right.fetch(begin, end);
  for (int64_t k = begin; k < end; k += kDepth) {
    left.put(left_tile);
    right.put(right_tile);
    device::block_barrier();
    if (k + kDepth < end) {
      left.fetch(k + kDepth, end);
      right.fetch(k + kDepth, end);
    }
    multiply(left_tile + row_at, right_tile + column_at, sums);
    device::block_barrier();
  }
#pragma unroll
  for (int32_t i = 0; i < kSide; ++i)
    if (row + row_at + i < product.rows && column + column_at < product.columns)
      product.store(group, split, row + row_at + i, column + column_at, sums[i]);
}

template <class Product>
PYSERVE_KERNEL(kThreads, sizeof(Accumulator<typename Product::Left::Element>) == 8 ? 1 : 2)
product_kernel(PYSERVE_PARAMETER Product product) {
  for (int64_t tile = device::block_index(); tile < product.tiles; tile += device::grid_size()) tile_of(product, tile);
}

template <class Product>
void run_product(Product product, const Queue& queue) {
  using Acc = Accumulator<typename Product::Left::Element>;
  const int64_t blocks = product.tiles < kMostBlocks ? product.tiles : kMostBlocks;
  device::launch(product_kernel<Product>, blocks, kThreads, 2 * kDepth * kPitch * sizeof(Acc), queue, product);
}

}  // namespace pyserve::simt
