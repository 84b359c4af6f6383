// Which input elements an output position reads: the forward convolution and each stride class of its input gradient
// are both "output position (i, j) reads input rows i·step_h + row[t] and columns j·step_w + column[u]". A table of
// pointers to pixels, with one row of zeros for the padding, keeps borders, strides and dilation out of the kernels.
// Shared by the vector kernels; local to each including file.
#pragma once
#include <cstdint>

namespace pyserve {
namespace {

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kBlock = 96;      // output positions per block; a multiple of every register tile's rows
constexpr int64_t kTableTaps = 64;  // taps per table

// The taps along one axis: offset[t] from the scaled output position, source[t] which weight row (or column) it is.
struct Axis {
  int64_t offset[kTableTaps], source[kTableTaps];
  int64_t count = 0;
};

struct Grid {
  int64_t images, rows, columns;         // output positions
  int64_t step_h, step_w;                // input pixels per output position
  int64_t in_h, in_w, in_pixel;          // input sizes; elements per input pixel
  int64_t first_h, first_w, by_h, by_w;  // where position (0, 0) is in the output, and the distance to the next
  int64_t out_h, out_w;                  // output sizes
  int64_t positions() const { return images * rows * columns; }
};

// One block of output positions: where each reads from and where it is written.
struct Block {
  int64_t count;
  int64_t row[kBlock], column[kBlock];  // scaled by the step
  int64_t base[kBlock];                 // the input element at (row, column)
  int64_t out[kBlock];                  // index of the output pixel

  Block(const Grid& g, int64_t first) : count(least(kBlock, g.positions() - first)) {
    int64_t j = first % g.columns, i = first / g.columns % g.rows, n = first / g.columns / g.rows;
    for (int64_t b = 0; b < kBlock; ++b) {
      // Behind the last position the rows lie outside of every image: those read zeros.
      row[b] = b < count ? i * g.step_h : INT64_MIN / 2, column[b] = j * g.step_w;
      base[b] = b < count ? ((n * g.in_h + row[b]) * g.in_w + column[b]) * g.in_pixel : 0;
      out[b] = (n * g.out_h + g.first_h + i * g.by_h) * g.out_w + g.first_w + j * g.by_w;
      if (++j == g.columns) j = 0, ++i;
      if (i == g.rows) i = 0, ++n;
    }
  }
};

// pixel[tap][b]: what block position b reads through a tap; `zeros` in the padding and behind the last position.
template <class T>
struct Table {
  const T* pixel[kTableTaps][kBlock];
  int64_t first = -1, last = -1;  // the taps it holds, numbered row by row

  void fill(const Grid& g, const Axis& rows, const Axis& columns, const Block& block, const T* input, const T* zeros,
            int64_t first_tap, int64_t last_tap) {
    if (first == first_tap && last == last_tap) return;
    first = first_tap, last = last_tap;
    const uint64_t in_h = static_cast<uint64_t>(g.in_h), in_w = static_cast<uint64_t>(g.in_w);
    for (int64_t tap = first; tap < last; ++tap) {
      const int64_t dh = rows.offset[tap / columns.count], dw = columns.offset[tap % columns.count];
      const int64_t shift = (dh * g.in_w + dw) * g.in_pixel, outside = zeros - input;
      const T** to = pixel[tap - first];
      for (int64_t b = 0; b < kBlock; ++b) {  // branch-free: this loop is vectorised
        const bool inside =
            (static_cast<uint64_t>(block.row[b] + dh) < in_h) & (static_cast<uint64_t>(block.column[b] + dw) < in_w);
        to[b] = input + (inside ? block.base[b] + shift : outside);
      }
    }
  }
};

}  // namespace
}  // namespace pyserve
