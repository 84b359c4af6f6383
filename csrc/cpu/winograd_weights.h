// G W Gᵀ: filters [columns][3][3][depth] (or, for the input gradient, [depth][3][3][columns] turned by 180°) to
// U [panel][6 × 6][depth][columns of the panel]; and their plain taps packed to [panel][depth][9][columns of the
// panel]. Needs Vec; local to each including file.
#pragma once
#include "convert.h"
#include "winograd_tiles.h"

namespace pyserve {
namespace {

constexpr int64_t kPieceDepth = 16;  // input channels whose weights are transformed at a time

// One vector of output channels from `column` on, for input channels [l, l + count): taps[i][9].
template <class T>
void load_taps(const WinogradShape& s, const T* weight, int64_t l, int64_t count, int64_t column, Vec (*taps)[kTaps]) {
  const int64_t n = least(Vec::kWidth, s.columns - column);
  for (int64_t tap = 0; tap < kTaps; ++tap) {
    if (s.gradient) {  // weight [depth][3][3][columns]
      for (int64_t i = 0; i < count; ++i) {
        const T* from = weight + ((l + i) * kTaps + kTaps - 1 - tap) * s.columns + column;
        taps[i][tap] = n < Vec::kWidth ? Vec::load(from, n) : Vec::load(from);
      }
      continue;
    }
    Vec square[Vec::kWidth];  // weight [columns][3][3][depth]
    for (int64_t j = 0; j < Vec::kWidth; ++j) {
      const T* from = weight + ((column + j) * kTaps + tap) * s.depth + l;
      square[j] = j >= n ? Vec::zero() : count < Vec::kWidth ? Vec::load(from, count) : Vec::load(from);
    }
    Vec::transpose(square);
    for (int64_t i = 0; i < count; ++i) taps[i][tap] = square[i];
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
    const int64_t width = s.first_column(panel + 1) - s.first_column(panel), u_step = s.depth * width;
    for (int64_t row = 0; row < kWeights; ++row)
      transform_filter_row<Scheme>(row, taps, count, width, s.u_at(u, panel, row * kWeights) + first * width, u_step);
  });
}

}  // namespace
}  // namespace pyserve
