// A tiled matrix product on tensor cores (mma.sync), for sm_80 and every architecture without a path of its own. What
// is multiplied, and where the results go, is the `Product`, as in product_simt.cuh; indices are 32-bit here.
//
// Operand tiles come by asynchronous copies into a ring of `kStages` in shared memory, kStages - 1 ahead of the tensor
// cores. Sums stay in registers; at the end they pass through shared memory, warp by warp, so that they leave for
// global memory 16 bytes at a time, beside what is to be added to them.
//
// A gradient on the left may have an activation's mask (Product::kMasksLeft): the tiles of y come beside its own, and
// each thread masks the chunks that it has copied itself, before the barrier that shows them to the others. A forward
// product (kGivesMoments) may also give the mean and the squared deviations of its output's columns, tile by tile.
#pragma once
#include "mma_tile.h"
#include "moments.h"
#include "product.h"

namespace pyserve::mma {

// A block computes kRows × kColumns sums, a warp kWarpRows × kWarpColumns of them.
template <int32_t rows, int32_t columns, int32_t warp_rows, int32_t warp_columns, int32_t stages, int32_t blocks>
struct Shape {
  static constexpr int32_t kRows = rows, kColumns = columns, kWarpRows = warp_rows, kWarpColumns = warp_columns;
  static constexpr int32_t kStages = stages, kBlocks = blocks;  // of a multiprocessor, at least
  static constexpr int32_t kWarpsAcross = columns / warp_columns;
  static constexpr int32_t kThreads = rows / warp_rows * kWarpsAcross * 32;
  static constexpr int32_t kStageBytes = (rows + columns) * kDepthBytes;
  static constexpr int32_t kPitch = warp_columns + 4;  // floats of a row of sums on their way out
  static constexpr int32_t kOutBytes = kThreads / 32 * 16 * kPitch * 4;
  static constexpr int32_t kSharedBytes = stages * kStageBytes > kOutBytes ? stages * kStageBytes : kOutBytes;
};

// Copies one operand's tiles: a thread's chunks lie on one line along the contiguous side. kVector elements, of the
// contiguous side, are what certainly exists or not as a whole; a chunk may take two copies.
template <class Operand, int32_t kOuter, int32_t kThreads, int32_t kVector>
class TileCopier {
  using T = typename Operand::Element;
  static constexpr bool kInnerContiguous = Operand::kInnerContiguous;
  using Tile = mma::Tile<T, kInnerContiguous, kOuter>;
  static constexpr int32_t kBytes = kVector * static_cast<int32_t>(sizeof(T)), kParts = kChunk / kBytes;
  static constexpr int32_t kLineStep = kThreads / Tile::kChunks;
  static constexpr int32_t kLines = kInnerContiguous ? kOuter : kDepth<T>;
  static constexpr int32_t kCopies = (kLines + kLineStep - 1) / kLineStep;
  static constexpr int32_t kOuters = kInnerContiguous ? kCopies : kParts;
  static_assert(kThreads % Tile::kChunks == 0);

 public:
  PYSERVE_DEVICE TileCopier(const Operand& operand, int32_t first, int32_t size)
      : operand_(operand),
        chunk_(device::thread_index() % Tile::kChunks),
        line_(device::thread_index() / Tile::kChunks) {
#pragma unroll
    for (int32_t i = 0; i < kOuters; ++i) {
      const int32_t at = kInnerContiguous ? line_ + i * kLineStep : chunk_ * Tile::kElements + i * kVector;
      exists_[i] = at < kOuter && first + at < size;
      outer_[i] = operand_.outer(exists_[i] ? first + at : 0);
    }
  }

  // Starts the copies of [begin, begin + kDepth) along the sum; zeros from `end` on. What is copied lies `distance`
  // elements from the operand.
  PYSERVE_DEVICE void start(unsigned char* tile, int32_t begin, int32_t end, int64_t distance = 0) const {
    if constexpr (kInnerContiguous) {
#pragma unroll
      for (int32_t part = 0; part < kParts; ++part) {
        const int32_t inner_at = begin + chunk_ * Tile::kElements + part * kVector;
        const auto inner = operand_.inner(inner_at < end ? inner_at : 0);
#pragma unroll
        for (int32_t i = 0; i < kCopies; ++i)
          copy(tile, i, part, exists_[i] && inner_at < end, outer_[i], inner, distance);
      }
    } else {
#pragma unroll
      for (int32_t i = 0; i < kCopies; ++i) {
        const int32_t inner_at = begin + line_ + i * kLineStep;
        const auto inner = operand_.inner(inner_at < end ? inner_at : 0);
#pragma unroll
        for (int32_t part = 0; part < kParts; ++part)
          copy(tile, i, part, exists_[part] && inner_at < end, outer_[part], inner, distance);
      }
    }
  }

  // Zeros in the thread's own chunks, which it has waited for, where `seen` is not between the bounds.
  PYSERVE_DEVICE void mask(unsigned char* tile, const unsigned char* seen, float lo, float hi) const {
    using Chunk = device::Vector<T, Tile::kElements>;
#pragma unroll
    for (int32_t i = 0; i < kCopies; ++i) {
      const int32_t line = line_ + i * kLineStep;
      if (kLines % kLineStep != 0 && line >= kLines) return;
      const int32_t at = Tile::address(line, chunk_);
      Chunk chunk = device::load_shared(reinterpret_cast<const Chunk*>(tile + at));
      const Chunk y = device::load_shared(reinterpret_cast<const Chunk*>(seen + at));
#pragma unroll
      for (int32_t j = 0; j < Tile::kElements; ++j) {
        const float value = widen(y.at[j]);
        if (value <= lo || value >= hi) chunk.at[j] = T{};
      }
      device::store_shared(reinterpret_cast<Chunk*>(tile + at), chunk);
    }
  }

 private:
  PYSERVE_DEVICE void copy(unsigned char* tile, int32_t i, int32_t part, bool exists,
                           const typename Operand::Outer& outer, const typename Operand::Inner& inner,
                           int64_t distance) const {
    const int32_t line = line_ + i * kLineStep;
    if (kLines % kLineStep != 0 && line >= kLines) return;
    const T* from = exists ? operand_.at(outer, inner) : nullptr;
    device::copy_async<kBytes>(tile + Tile::address(line, chunk_) + part * kBytes,
                               from != nullptr ? from + distance : operand_.any(), from != nullptr);
  }

  Operand operand_;
  int32_t chunk_, line_;
  typename Operand::Outer outer_[kOuters];
  bool exists_[kOuters];
};

// A warp's sums, as the tensor cores have them: 16 × 8 each, four a lane.
template <class Shape>
struct Sums {
  float at[Shape::kWarpRows / 16][Shape::kWarpColumns / 8][4];
};

// sums += left tile × right tile, for the warp's rows and columns.
template <class LeftTile, class RightTile, class T, class Shape>
PYSERVE_DEVICE void multiply_tiles(const unsigned char* left, const unsigned char* right, int32_t row, int32_t column,
                                   Sums<Shape>& sums) {
#pragma unroll
  for (int32_t step = 0; step < kSteps; ++step) {
    uint32_t a[Shape::kWarpRows / 16][4], b[Shape::kWarpColumns / 16][4];
#pragma unroll
    for (int32_t i = 0; i < Shape::kWarpRows / 16; ++i) LeftTile::template load<true>(a[i], left, row + i * 16, step);
#pragma unroll
    for (int32_t j = 0; j < Shape::kWarpColumns / 16; ++j)
      RightTile::template load<false>(b[j], right, column + j * 16, step);
#pragma unroll
    for (int32_t i = 0; i < Shape::kWarpRows / 16; ++i)
#pragma unroll
      for (int32_t j = 0; j < Shape::kWarpColumns / 8; ++j)
        multiply<T>(sums.at[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }
}

// The sum of a row of a left tile whose rows are contiguous in memory.
template <class LeftTile, class T>
PYSERVE_DEVICE float row_sum(const unsigned char* tile, int32_t row) {
  float sum = 0;
#pragma unroll 8
  for (int32_t line = 0; line < kDepth<T>; ++line) {
    const unsigned char* chunk = tile + LeftTile::address(line, row / LeftTile::kElements);
    sum += widen(device::load_shared(reinterpret_cast<const T*>(chunk) + row % LeftTile::kElements));
  }
  return sum;
}

// Hands the warp's sums to the product, 16 rows at a time, in runs of what makes 16 bytes. Each lane collects the
// moments of one column.
template <class Shape, class Product>
PYSERVE_DEVICE void store_sums(const Product& product, int32_t group, int32_t split, int32_t row, int32_t column,
                               const Sums<Shape>& sums, Moments& moments) {
  constexpr int32_t kRun = kChunk / static_cast<int32_t>(sizeof(typename Product::Left::Element));
  constexpr int32_t kRuns = Shape::kWarpColumns / kRun;
  using Two = device::Vector<float, 2>;
  using Four = device::Vector<float, 4>;
  const int32_t lane = device::thread_index() % 32, warp = device::thread_index() / 32;
  float* out = reinterpret_cast<float*>(device::shared_memory()) + warp * 16 * Shape::kPitch;
#pragma unroll
  for (int32_t i = 0; i < Shape::kWarpRows / 16; ++i) {
#pragma unroll
    for (int32_t j = 0; j < Shape::kWarpColumns / 8; ++j)
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        float* to = out + (lane / 4 + half * 8) * Shape::kPitch + j * 8 + lane % 4 * 2;
        device::store_shared(reinterpret_cast<Two*>(to), {sums.at[i][j][half * 2], sums.at[i][j][half * 2 + 1]});
      }
    device::warp_barrier();
#pragma unroll
    for (int32_t run = lane; run < 16 * kRuns; run += 32) {
      float values[kRun];
      const float* from = out + run / kRuns * Shape::kPitch + run % kRuns * kRun;
#pragma unroll
      for (int32_t k = 0; k < kRun; k += 4) {
        const Four four = device::load_shared(reinterpret_cast<const Four*>(from + k));
#pragma unroll
        for (int32_t l = 0; l < 4; ++l) values[k + l] = four.at[l];
      }
      const int32_t row_at = row + i * 16 + run / kRuns, column_at = column + run % kRuns * kRun;
      if (row_at < product.rows && column_at < product.columns) product.store(group, split, row_at, column_at, values);
    }
    if constexpr (Product::kGivesMoments) {
      static_assert(Shape::kWarpColumns == 32);
      if (product.moments != nullptr)
        moments.add<typename Product::Left::Element, 16>(out + lane, Shape::kPitch,
                                                         static_cast<int32_t>(product.rows) - row - i * 16,
                                                         product.bias_of(group, column + lane));
    }
    device::warp_barrier();
  }
}

// Merges the moments of the warps that share columns, in their order, and hands them to the product.
template <class Shape, class Product>
PYSERVE_DEVICE void store_moments(const Product& product, int32_t group, int32_t row, int32_t column,
                                  const Moments& moments) {
  Moments* const all = reinterpret_cast<Moments*>(device::shared_memory());  // [rows of warps][columns of the block]
  const int32_t warp = device::thread_index() / 32, lane = device::thread_index() % 32;
  const int32_t at = warp % Shape::kWarpsAcross * 32 + lane;
  device::block_barrier();  // the sums have left
  device::store_shared(all + warp / Shape::kWarpsAcross * Shape::kColumns + at, moments);
  device::block_barrier();
  if (warp >= Shape::kWarpsAcross || column + at >= product.columns) return;
  Moments merged = moments;
#pragma unroll
  for (int32_t i = 1; i < Shape::kRows / Shape::kWarpRows; ++i)
    merged.merge(device::load_shared(all + i * Shape::kColumns + at));
  product.store_moments(row / Shape::kRows, group, column + at, merged.mean, merged.squares);
}

// Whether the left matrix' rows are summed on the way: those of a gradient are the gradient of the bias.
template <class Product>
constexpr bool sums_rows = Product::kMasksLeft && !Product::Left::kInnerContiguous;

// What a stage has more where the left matrix is masked.
template <class Shape, class Product>
PYSERVE_INLINE int32_t masked_bytes(const Product& product) {
  if constexpr (Product::kMasksLeft) return product.mask.wanted ? Shape::kRows * kDepthBytes : 0;
  return 0;
}

template <class Shape, int32_t kVector, class Product>
PYSERVE_DEVICE void tile_of(const Product& product, int32_t tile) {
  using Left = typename Product::Left;
  using Right = typename Product::Right;
  using T = typename Left::Element;
  using LeftTile = Tile<T, Left::kInnerContiguous, Shape::kRows>;
  using RightTile = Tile<T, Right::kInnerContiguous, Shape::kColumns>;
  const int32_t above = quotient(tile, product.column_tiles), outside = quotient(above, product.row_tiles);
  const int32_t column = (tile - above * static_cast<int32_t>(product.column_tiles.value)) * Shape::kColumns;
  const int32_t row = (above - outside * static_cast<int32_t>(product.row_tiles.value)) * Shape::kRows;
  const int32_t group = quotient(outside, product.splits);
  const int32_t split = outside - group * static_cast<int32_t>(product.splits.value);
  const int32_t begin = split * static_cast<int32_t>(product.share);
  const int32_t rest = static_cast<int32_t>(product.inner) - begin;
  const int32_t length = rest < product.share ? rest : static_cast<int32_t>(product.share), end = begin + length;
  const int32_t count = length > 0 ? (length + kDepth<T> - 1) / kDepth<T> : 0;

  unsigned char* const shared = device::shared_memory();
  const TileCopier<Left, Shape::kRows, Shape::kThreads, kVector> left(product.left(group), row, product.rows);
  const TileCopier<Right, Shape::kColumns, Shape::kThreads, kVector> right(product.right(group), column,
                                                                           product.columns);
  const int32_t stage_bytes = Shape::kStageBytes + masked_bytes<Shape>(product);
  const auto start = [&](int32_t i, int32_t stage) {
    unsigned char* const at = shared + stage * stage_bytes;
    left.start(at, begin + i * kDepth<T>, end);
    right.start(at + LeftTile::kBytes, begin + i * kDepth<T>, end);
    if constexpr (Product::kMasksLeft) {
      if (product.mask.wanted) left.start(at + Shape::kStageBytes, begin + i * kDepth<T>, end, product.mask.distance);
    }
  };
  for (int32_t i = 0; i < Shape::kStages - 1; ++i) {
    if (i < count) start(i, i);
    device::copy_commit();
  }
  const int32_t warp = device::thread_index() / 32;
  const int32_t row_at = warp / Shape::kWarpsAcross * Shape::kWarpRows;
  const int32_t column_at = warp % Shape::kWarpsAcross * Shape::kWarpColumns;
  Sums<Shape> sums = {};
  float of_row = 0;  // of the left matrix, thread by thread
  int32_t stage = 0, ahead = Shape::kStages - 1;
  for (int32_t i = 0; i < count; ++i) {
    device::copy_wait<Shape::kStages - 2>();
    unsigned char* const at = shared + stage * stage_bytes;
    if constexpr (Product::kMasksLeft) {
      if (product.mask.wanted) left.mask(at, at + Shape::kStageBytes, product.mask.lo, product.mask.hi);
    }
    device::block_barrier();  // everybody's copies are there, and everybody is done with the stage before
    if (i + Shape::kStages - 1 < count) start(i + Shape::kStages - 1, ahead);
    device::copy_commit();
    multiply_tiles<LeftTile, RightTile, T>(at, at + LeftTile::kBytes, row_at, column_at, sums);
    if constexpr (sums_rows<Product>) {
      if (product.bias_parts != nullptr && column == 0 && device::thread_index() < Shape::kRows)
        of_row += row_sum<LeftTile, T>(at, device::thread_index());
    }
    ahead = stage;
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }
  if constexpr (sums_rows<Product>) {
    const int32_t mine = row + device::thread_index();
    if (product.bias_parts != nullptr && column == 0 && device::thread_index() < Shape::kRows && mine < product.rows)
      product.store_row_sum(group, split, mine, of_row);
  }
  device::copy_wait<0>();
  device::block_barrier();
  Moments moments;
  store_sums(product, group, split, row + row_at, column + column_at, sums, moments);
  if constexpr (Product::kGivesMoments) {
    if (product.moments != nullptr) store_moments<Shape>(product, group, row, column, moments);
  }
}

template <class Shape, int32_t kVector, class Product>
PYSERVE_KERNEL(Shape::kThreads, Shape::kBlocks)
product_kernel(PYSERVE_PARAMETER Product product) {
  tile_of<Shape, kVector>(product, static_cast<int32_t>(device::block_index()));
}

template <class Shape, int32_t kVector, class Product>
void run_product(Product& product, int64_t splits, const Queue& queue) {
  product.cut(Shape::kRows, Shape::kColumns, kDepth<typename Product::Left::Element>, splits);
  if constexpr (Product::kGivesMoments) product.make_moments(Shape::kRows, queue);
  const int32_t shared_bytes = Shape::kSharedBytes + Shape::kStages * masked_bytes<Shape>(product);
  device::launch(product_kernel<Shape, kVector, Product>, product.tiles, Shape::kThreads, shared_bytes, queue, product);
  if constexpr (Product::kGivesMoments) product.merge_moments(Shape::kRows, queue);
}

}  // namespace pyserve::mma
