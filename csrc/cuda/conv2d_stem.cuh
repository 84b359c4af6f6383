// The first layer of a network and the max pooling after it, for prediction: a convolution of few channels with stride
// 2, on tensor cores (mma.sync), for bfloat16, float16, and float32 as TF32; sums are float32.
//
// Of a ResNet's stem (7×7, 3 → 64 channels, then 3×3 with stride 2) the unpooled map is the traffic: of a picture of
// 224×224 in 16 bits 1.6 MB written and read again, where 0.3 MB come in and 0.4 MB go out. Here it never leaves shared
// memory. And an implicit GEMM would copy each pixel a dozen times, R·S / 4, from a copy padded to 4 channels. Here a
// block reads the pixels under its tile once, as they are, and pads them on the way. That pays because of the stride:
// two pixels of 4 channels are 16 bytes, a row of an ldmatrix, so the fragments of the left matrix, 16 positions of y
// by the taps of a row of the kernel, are read where the pixels lie (rows of 4 and 8 taps; those beyond S are made zero
// in the fragment, for what lies there may be infinite). TF32 has one pixel a row, in two ways of a bank.
//
//     weights  [filter][r][tap][4]   of the block's filters, for all its tiles
//     patch    [row][column][4]      pixels under a tile
//     map      [position][filter]    a tile of y before it is pooled
//
// A tile is 15 × 17 positions of y, two times 16 for each of 8 warps: 7 × 8 outputs of the usual pooling, 224 positions
// without those that neighbours share. So an eighth is computed twice; nothing is exchanged between blocks. Blocks stay
// for several tiles: the next one's pixels come while this one is pooled.
#pragma once
#include <algorithm>

#include "../pooling.h"
#include "divisor.h"
#include "mma_tile.h"
#include "vector_access.h"

namespace pyserve::stem {

constexpr int32_t kRows = 15, kColumns = 17, kPositions = kRows * kColumns;  // of a tile of y
constexpr int32_t kWarps = 8, kThreads = kWarps * 32, kWarpRows = 2;         // the latter of 16 positions
constexpr int32_t kStride = 2, kPadded = 4;                                  // channels of a pixel in shared memory
constexpr int32_t kFilterBytes = 128;                                        // of the filters that a block computes
constexpr int32_t kMapPitch = kFilterBytes + mma::kChunk;                    // bytes; warps store without conflicts
constexpr int32_t kStepBytes = 2 * mma::kChunk;                              // of an mma along the sum
constexpr int32_t kAtOnce = 3;                                               // pixels that a thread has on their way
static_assert(kWarps * kWarpRows * 16 >= kPositions);

template <class T>
constexpr int32_t kFilters = kFilterBytes / static_cast<int32_t>(sizeof(T));
// An element's bits, and a pixel of them, which is one tap of a filter, too.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
template <class T>
using Pixel = device::Vector<Bits<T>, kPadded>;

struct Stem {
  Conv2dProblem p;
  Conv2dArgs args;
  int32_t rows, columns;  // of outputs of the pooling in a tile
  Divisor tiles_h, tiles_w, filter_tiles, output_columns, kernel_rows;
  int64_t tiles;
  bool wide;

  Stem(const Conv2dProblem& p, const Conv2dArgs& args, int32_t filters, bool wide)
      : p(p),
        args(args),
        rows(static_cast<int32_t>((kRows - p.pool.size) / p.pool.stride) + 1),
        columns(static_cast<int32_t>((kColumns - p.pool.size) / p.pool.stride) + 1),
        tiles_h((p.pooled(p.P) + rows - 1) / rows),
        tiles_w((p.pooled(p.Q) + columns - 1) / columns),
        filter_tiles((p.K + filters - 1) / filters),
        output_columns(columns),
        kernel_rows(p.R),
        tiles(p.N * tiles_h.value * tiles_w.value),
        wide(wide) {}
};

// Where everything lies in shared memory. kTaps: those of a row of the kernel, with zeros, 4 or 8.
template <class T, int32_t kTaps>
struct Layout {
  static constexpr int32_t kTapBytes = kPadded * static_cast<int32_t>(sizeof(T));
  static constexpr int32_t kRowBytes = kTaps * kTapBytes;  // of a row of the kernel
  static constexpr int32_t kPatchColumns = (kColumns - 1) * kStride + kTaps;
  static constexpr int32_t kPatchPitch = kPatchColumns * kTapBytes;
  static constexpr int32_t kMap = kPositions * kMapPitch;

  int32_t filter_pitch, patch_rows, patch, bias, size;

  // The pitch is an odd number of chunks: an ldmatrix of eight filters meets no bank twice.
  PYSERVE_INLINE explicit constexpr Layout(int64_t R)
      : filter_pitch(static_cast<int32_t>(R) * kRowBytes + mma::kChunk),
        patch_rows((kRows - 1) * kStride + static_cast<int32_t>(R)),
        patch(kMap + kFilters<T> * filter_pitch),
        bias(patch + patch_rows * kPatchPitch),
        size(bias + kFilters<T> * static_cast<int32_t>(sizeof(float))) {}
  PYSERVE_DEVICE static unsigned char* map() { return device::shared_memory(); }
  PYSERVE_DEVICE static unsigned char* weights() { return map() + kMap; }
};

// At most 8 rows of the kernel: two blocks share an A100's multiprocessor, and TF32 fits where a block has 99 KiB.
static_assert(Layout<BFloat16, 8>(8).size <= 81 << 10 && Layout<float, 8>(8).size <= 99 << 10);

// Where a tile lies: its image, and its first output.
struct Place {
  int64_t image;
  int32_t row, column;
};

PYSERVE_DEVICE Place place_of(const Stem& stem, int32_t tile) {
  const int32_t line = quotient(tile, stem.tiles_w), n = quotient(line, stem.tiles_h);
  const int32_t row = line - n * static_cast<int32_t>(stem.tiles_h.value);
  return {n, row * stem.rows, (tile - line * static_cast<int32_t>(stem.tiles_w.value)) * stem.columns};
}

// C elements as a pixel; float32 rounded to TF32, once for all the products that it is in.
template <class T>
PYSERVE_DEVICE Pixel<T> load_pixel(const T* from, int64_t channels) {
  Pixel<T> pixel{};
#pragma unroll
  for (int32_t c = 0; c < kPadded; ++c) {
    if (c < channels) pixel.at[c] = device::load(reinterpret_cast<const Bits<T>*>(from) + c);
    if constexpr (sizeof(T) == 4) pixel.at[c] = device::tf32_from_float_bits(pixel.at[c]);
  }
  return pixel;
}

template <class T, int32_t kTaps>
PYSERVE_DEVICE void load_weights(const Stem& stem, const Layout<T, kTaps>& at, int32_t first) {
  const T* const weight = static_cast<const T*>(stem.args.weight);
  const auto R = static_cast<int32_t>(stem.p.R);
  for (int32_t i = device::thread_index(); i < kFilters<T> * R * kTaps; i += kThreads) {
    const int32_t line = i / kTaps, s = i % kTaps, filter = quotient(line, stem.kernel_rows), r = line - filter * R;
    Pixel<T> tap{};
    if (first + filter < stem.p.K && s < stem.p.S)
      tap = load_pixel(weight + (((first + filter) * stem.p.R + r) * stem.p.S + s) * stem.p.C, stem.p.C);
    unsigned char* const to = at.weights() + filter * at.filter_pitch + r * at.kRowBytes + s * at.kTapBytes;
    device::store_shared(reinterpret_cast<Pixel<T>*>(to), tap);
  }
  if (device::thread_index() >= kFilters<T>) return;
  const int32_t filter = first + device::thread_index();
  const bool biased = stem.args.bias != nullptr && filter < stem.p.K;
  float* const bias = reinterpret_cast<float*>(at.map() + at.bias) + device::thread_index();
  device::store_shared(bias, biased ? widen(device::load(static_cast<const T*>(stem.args.bias) + filter)) : 0.0f);
}

// The pixels under a tile, several at once so that their loads overlap; zeros in the padding.
template <class T, int32_t kTaps>
PYSERVE_DEVICE void load_patch(const Stem& stem, const Layout<T, kTaps>& at, const Place& place) {
  const Conv2dProblem& p = stem.p;
  const int64_t first_h = (place.row * p.pool.stride - p.pool.pad) * kStride - p.pad_h;
  const int64_t first_w = (place.column * p.pool.stride - p.pool.pad) * kStride - p.pad_w;
  const T* const image = static_cast<const T*>(stem.args.x) + place.image * p.H * p.W * p.C;
  unsigned char* const patch = at.map() + at.patch;
  const int32_t count = at.patch_rows * at.kPatchColumns;
  for (int32_t i = device::thread_index(); i < count; i += kAtOnce * kThreads) {
    Pixel<T> pixels[kAtOnce] = {};
#pragma unroll
    for (int32_t j = 0; j < kAtOnce; ++j) {
      const int32_t row = (i + j * kThreads) / at.kPatchColumns, column = (i + j * kThreads) % at.kPatchColumns;
      const int64_t h = first_h + row, w = first_w + column;
      if (row < at.patch_rows && h >= 0 && h < p.H && w >= 0 && w < p.W)
        pixels[j] = load_pixel(image + (h * p.W + w) * p.C, p.C);
    }
#pragma unroll
    for (int32_t j = 0; j < kAtOnce; ++j)
      if (i + j * kThreads < count)
        device::store_shared(reinterpret_cast<Pixel<T>*>(patch + (i + j * kThreads) * at.kTapBytes), pixels[j]);
  }
}

template <class T>
struct Sums {
  float at[kWarpRows][kFilters<T> / 8][4];
};

// The left fragment's words are zero where they are of taps beyond S.
template <class T, int32_t kTaps>
PYSERVE_DEVICE void drop_taps(uint32_t (&a)[4], int32_t step, int64_t S) {
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t bytes = step * kStepBytes + i / 2 * mma::kChunk + device::thread_index() % 4 * 4;
    if (bytes / Layout<T, kTaps>::kTapBytes >= S) a[i] = 0;
  }
}

// The warp's positions of the tile by the block's filters.
template <class T, int32_t kTaps>
PYSERVE_DEVICE void multiply_patch(const Stem& stem, const Layout<T, kTaps>& at, Sums<T>& sums) {
  const int32_t lane = device::thread_index() % 32, first = device::thread_index() / 32 * kWarpRows * 16;
  const unsigned char *left[kWarpRows], *right[kFilters<T> / 16];
#pragma unroll
  for (int32_t i = 0; i < kWarpRows; ++i) {
    const int32_t mine = first + i * 16 + lane % 16, position = mine < kPositions ? mine : 0;
    const int32_t row = position / kColumns * kStride, column = position % kColumns * kStride;
    left[i] = at.map() + at.patch + row * at.kPatchPitch + column * at.kTapBytes + lane / 16 * mma::kChunk;
  }
#pragma unroll
  for (int32_t j = 0; j < kFilters<T> / 16; ++j)
    right[j] = at.weights() + (j * 16 + lane / 16 * 8 + lane % 8) * at.filter_pitch + lane / 8 % 2 * mma::kChunk;
  for (int32_t r = 0; r < stem.p.R; ++r)
#pragma unroll
    for (int32_t step = 0; step < at.kRowBytes / kStepBytes; ++step) {
      uint32_t a[kWarpRows][4], b[kFilters<T> / 16][4];
#pragma unroll
      for (int32_t i = 0; i < kWarpRows; ++i) {
        device::load_matrices(a[i], left[i] + r * at.kPatchPitch + step * kStepBytes);
        if ((step + 1) * kStepBytes > stem.p.S * at.kTapBytes) drop_taps<T, kTaps>(a[i], step, stem.p.S);
      }
#pragma unroll
      for (int32_t j = 0; j < kFilters<T> / 16; ++j)
        device::load_matrices(b[j], right[j] + r * at.kRowBytes + step * kStepBytes);
#pragma unroll
      for (int32_t i = 0; i < kWarpRows; ++i)
#pragma unroll
        for (int32_t j = 0; j < kFilters<T> / 8; ++j)
          mma::multiply<T>(sums.at[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

// The tile of y as it would be written: with bias, clamped, rounded.
template <class T, int32_t kTaps>
PYSERVE_DEVICE void store_map(const Stem& stem, const Layout<T, kTaps>& at, const Sums<T>& sums) {
  using Two = device::Vector<T, 2>;
  const int32_t lane = device::thread_index() % 32, first = device::thread_index() / 32 * kWarpRows * 16;
  const float* const bias = reinterpret_cast<const float*>(at.map() + at.bias);
  const auto lo = static_cast<float>(stem.p.clamp.lo), hi = static_cast<float>(stem.p.clamp.hi);
#pragma unroll
  for (int32_t j = 0; j < kFilters<T> / 8; ++j) {
    const int32_t filter = j * 8 + lane % 4 * 2;
    const auto added = device::load_shared(reinterpret_cast<const device::Vector<float, 2>*>(bias + filter));
#pragma unroll
    for (int32_t i = 0; i < kWarpRows; ++i)
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t position = first + i * 16 + half * 8 + lane / 4;
        if (position >= kPositions) continue;
        Two values;
#pragma unroll
        for (int32_t k = 0; k < 2; ++k)
          values.at[k] = narrow<T>(clamp(sums.at[i][j][half * 2 + k] + added.at[k], lo, hi));
        T* const to = reinterpret_cast<T*>(at.map() + position * kMapPitch) + filter;
        device::store_shared(reinterpret_cast<Two*>(to), values);
      }
  }
}

// The outputs of a tile, 16 bytes of filters a thread. As PyTorch's max_pool2d: NaN wins, padding never does.
template <class T>
PYSERVE_DEVICE void pool_map(const Stem& stem, const unsigned char* map, const Place& place, int32_t first) {
  constexpr int32_t kRuns = kFilterBytes / mma::kChunk;
  using Run = device::Vector<T, kWide<T>>;
  const Conv2dProblem& p = stem.p;
  const int64_t rows = p.pooled(p.P), columns = p.pooled(p.Q);
  for (int32_t i = device::thread_index(); i < stem.rows * stem.columns * kRuns; i += kThreads) {
    const int32_t at = i / kRuns, line = quotient(at, stem.output_columns), run = i % kRuns;
    const int32_t row = place.row + line, column = place.column + at - line * stem.columns;
    const int32_t filter = first + run * kWide<T>;
    if (row >= rows || column >= columns || filter >= p.K) continue;
    const PoolingWindow h = max_pool2d_window(row, p.pool.size, p.pool.stride, p.pool.pad, p.P);
    const PoolingWindow w = max_pool2d_window(column, p.pool.size, p.pool.stride, p.pool.pad, p.Q);
    const auto above = static_cast<int32_t>(place.row * p.pool.stride - p.pool.pad);
    const auto before = static_cast<int32_t>(place.column * p.pool.stride - p.pool.pad);
    float most[kWide<T>];
#pragma unroll
    for (int32_t k = 0; k < kWide<T>; ++k) most[k] = -INFINITY;
    for (auto u = static_cast<int32_t>(h.begin); u < h.end; ++u)
      for (auto v = static_cast<int32_t>(w.begin); v < w.end; ++v) {
        const int32_t position = (u - above) * kColumns + v - before;
        const Run values =
            device::load_shared(reinterpret_cast<const Run*>(map + position * kMapPitch + run * mma::kChunk));
#pragma unroll
        for (int32_t k = 0; k < kWide<T>; ++k) {
          const float value = widen(values.at[k]);
          if (value > most[k] || value != value) most[k] = value;
        }
      }
    const int64_t to = ((place.image * rows + row) * columns + column) * p.K;
    write(static_cast<T*>(stem.args.y), to + filter, to + p.K, stem.wide, most);
  }
}

template <class T, int32_t kTaps>
PYSERVE_KERNEL(kThreads, 2)
stem_kernel(PYSERVE_PARAMETER Stem stem) {
  const Layout<T, kTaps> at(stem.p.R);
  const auto block = static_cast<int32_t>(device::block_index()), walk = quotient(block, stem.filter_tiles);
  const auto filter_tiles = static_cast<int32_t>(stem.filter_tiles.value);
  const int32_t first = (block - walk * filter_tiles) * kFilters<T>;
  const int32_t step = static_cast<int32_t>(device::grid_size()) / filter_tiles;
  load_weights(stem, at, first);
  load_patch(stem, at, place_of(stem, walk));
  device::block_barrier();
  for (int32_t tile = walk; tile < stem.tiles; tile += step) {
    Sums<T> sums = {};
    multiply_patch(stem, at, sums);
    store_map(stem, at, sums);
    device::block_barrier();  // the map is there, and nobody reads the patch any more
    if (tile + step < stem.tiles) load_patch(stem, at, place_of(stem, tile + step));
    pool_map<T>(stem, at.map(), place_of(stem, tile), first);
    device::block_barrier();  // the next patch is there, and nobody reads the map any more
  }
}

template <class T, int32_t kTaps>
void run(const Stem& stem, const Queue& queue) {
  const int64_t walks = std::max<int64_t>(1, 2 * queue.multiprocessors / stem.filter_tiles.value);
  device::launch(stem_kernel<T, kTaps>, std::min(stem.tiles, walks) * stem.filter_tiles.value, kThreads,
                 Layout<T, kTaps>(stem.p.R).size, queue, stem);
}

template <class T>
void conv2d_pooled(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  const Stem stem(p, args, kFilters<T>, p.K % kWide<T> == 0 && aligned(args.y));
  if (p.S <= 4) return run<T, 4>(stem, queue);
  run<T, 8>(stem, queue);
}

}  // namespace pyserve::stem
