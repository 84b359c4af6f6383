// G W Gᵀ: filters [columns][3][3][depth] (or, for the input gradient, [depth][3][3][columns] turned by 180°) to
// U [panel][6 × 6][depth][columns of the panel]; and their plain taps packed to [panel][depth][9][columns of the
// panel]. Needs Vec; local to each including file.
#pragma once
#include "convert.h"
#include "winograd_tiles.h"

namespace pyserve {
namespace {

constexpr int64_t kPieceDepth = 16;  // input channels whose weights are transformed at a time

// Rows of `n` floats `step` apart, one per output channel, zeros behind the last of them, as columns.
template <class T>
void load_columns(const T* from, int64_t step, int64_t rows, int64_t n, Vec (&square)[Vec::kWidth]) {
  for (int64_t j = 0; j < Vec::kWidth; ++j)
    square[j] = j >= rows ? Vec::zero() : n < Vec::kWidth ? Vec::load(from + j * step, n) : Vec::load(from + j * step);
  Vec::transpose(square);
}

// One vector of output channels from `column` on, for input channels [l, l + count): taps[i][9]. In the four layouts of
// weights [columns][3][3][depth] and [columns][depth][3][3], for the gradient [depth][3][3][columns] and
// [depth][columns][3][3] turned by 180°.
template <class T>
void load_taps(const WinogradShape& s, const T* weight, int64_t l, int64_t count, int64_t column, Vec (*taps)[kTaps]) {
  const int64_t n = least(Vec::kWidth, s.columns - column), filter = kTaps * s.depth;
  Vec square[Vec::kWidth];
  if (!s.gradient && !s.kcrs) {
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      load_columns(weight + column * filter + tap * s.depth + l, filter, n, count, square);
      for (int64_t i = 0; i < count; ++i) taps[i][tap] = square[i];
    }
  } else if (!s.gradient) {  // a filter's channels and taps are one row
    for (int64_t at = 0; at < count * kTaps; at += Vec::kWidth) {
      const int64_t found = least(Vec::kWidth, count * kTaps - at);
      load_columns(weight + column * filter + l * kTaps + at, filter, n, found, square);
      for (int64_t i = 0; i < found; ++i) taps[(at + i) / kTaps][(at + i) % kTaps] = square[i];
    }
  } else if (!s.kcrs) {
    for (int64_t i = 0; i < count * kTaps; ++i) {
      const T* from = weight + (l * kTaps + i) * s.columns + column;
      taps[i / kTaps][kTaps - 1 - i % kTaps] = n < Vec::kWidth ? Vec::load(from, n) : Vec::load(from);
    }
  } else {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t tap = 0; tap < kTaps; tap += Vec::kWidth) {
        const int64_t found = least(Vec::kWidth, kTaps - tap);
        load_columns(weight + ((l + i) * s.columns + column) * kTaps + tap, kTaps, n, found, square);
        for (int64_t j = 0; j < found; ++j) taps[i][kTaps - 1 - tap - j] = square[j];
      }
  }
}

template <class Scheme, int kWeight = 0>
__attribute__((always_inline)) inline void store_weights(const Vec* half, float* u, int64_t u_step) {
  Scheme::template weight<kWeight>(half[0], half[1], half[2]).store(u + kWeight * u_step);
  if constexpr (kWeight + 1 < kWeights) store_weights<Scheme, kWeight + 1>(half, u, u_step);
}

// A row of the transformed weights, u[6][l][width], of filters taps[l][9][width] for `count` input channels.
template <class Scheme, int kRow = 0>
void transform_filter_row(int64_t row, const float* taps, int64_t count, int64_t width, float* u, int64_t u_step) {
  if constexpr (kRow + 1 < kWeights)
    if (row != kRow) return transform_filter_row<Scheme, kRow + 1>(row, taps, count, width, u, u_step);
  for (int64_t l = 0; l < count; ++l, taps += kTaps * width, u += width)
    for (int64_t column = 0; column < width; column += Vec::kWidth) {
      const float* w = taps + column;
      Vec half[3];
#pragma GCC unroll 3
      for (int64_t s = 0; s < 3; ++s)
        half[s] = Scheme::template weight<kRow>(Vec::load(w + s * width), Vec::load(w + (3 + s) * width),
                                                Vec::load(w + (6 + s) * width));
      store_weights<Scheme>(half, u + column, u_step);
    }
}

// The same as words of two input channels each, u[6][l / 2][width]; behind the last channel are zeros.
template <class Scheme, class PairVec = Vec>
void transform_filter_row_to_pairs(int64_t row, const float* taps, int64_t count, int64_t width, float* u,
                                   int64_t u_step) {
  alignas(64) float floats[kWeights * kPieceDepth * kMostColumns];
  const int64_t step = kPieceDepth * width;
  transform_filter_row<Scheme>(row, taps, count, width, floats, step);
  for (int64_t j = 0; j < kWeights; ++j)
    for (int64_t l = 0; l < count; l += 2)
      for (int64_t column = 0; column < width; column += Vec::kWidth) {
        const float* from = floats + j * step + l * width + column;
        const Vec second = l + 1 < count ? Vec::load(from + width) : Vec::zero();
        PairVec::pairs(Vec::load(from), second).store(u + j * u_step + l / 2 * width + column);
      }
}

// The panel's taps[l][9][width] for input channels [first, first + count).
template <class T>
void gather_taps(const WinogradShape& s, const T* weight, int64_t panel, int64_t first, int64_t count, float* taps) {
  const int64_t column0 = s.first_column(panel), width = s.first_column(panel + 1) - column0;
  Vec of_vector[Vec::kWidth][kTaps];
  for (int64_t l = 0; l < count; l += Vec::kWidth)
    for (int64_t column = 0; column < width; column += Vec::kWidth) {
      const int64_t depth = least(Vec::kWidth, count - l);
      load_taps(s, weight, first + l, depth, column0 + column, of_vector);
      float* to = taps + l * kTaps * width + column;
      for (int64_t i = 0; i < depth; ++i)
        for (int64_t tap = 0; tap < kTaps; ++tap, to += width) of_vector[i][tap].store(to);
    }
}

// f(panel, first input channel, their number) for all pieces.
template <class F>
void for_each_piece(const WinogradShape& s, const Pool& pool, F&& f) {
  const int64_t pieces = ceil_div(s.depth, kPieceDepth);
  pool(s.panels() * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kPieceDepth;
      f(i / pieces, first, least(kPieceDepth, s.depth - first));
    }
  });
}

template <class T>
void pack_taps(const WinogradShape& s, const T* weight, float* packed, const Pool& pool) {
  for_each_piece(s, pool, [&](int64_t panel, int64_t first, int64_t count) {
    gather_taps(s, weight, panel, first, count, s.taps_at(packed, panel, first));
  });
}

template <class Scheme, class T>
void transform_all_weights(const WinogradShape& s, const T* weight, float* u, const Pool& pool) {
  for_each_piece(s, pool, [&](int64_t panel, int64_t first, int64_t count) {
    alignas(64) float taps[kPieceDepth * kTaps * kMostColumns];
    gather_taps(s, weight, panel, first, count, taps);
    const int64_t width = s.first_column(panel + 1) - s.first_column(panel), u_step = s.words() * width;
    for (int64_t row = 0; row < kWeights; ++row) {
      float* to = s.u_at(u, panel, row * kWeights) + first / Vec::kPerWord * width;
      if constexpr (Vec::kPerWord == 1)
        transform_filter_row<Scheme>(row, taps, count, width, to, u_step);
      else
        transform_filter_row_to_pairs<Scheme>(row, taps, count, width, to, u_step);
    }
  });
}

}  // namespace
}  // namespace pyserve
