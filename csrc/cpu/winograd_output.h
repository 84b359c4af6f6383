// Aᵀ M A: M [point][tile][columns of a panel] to the output, with bias, residual and clamp on the way.
// Needs Vec; local to each including file.
#pragma once
#include "convert.h"
#include "winograd_tiles.h"

namespace pyserve {
namespace {

template <class Scheme, class T>
struct WinogradOutput {
  static constexpr int kPoints = Scheme::kPoints;

  const float* bias;  // [vectors · width], or null
  const T* residual;  // or null
  T* y;               // [images][P][Q][columns]
  Vec lo, hi;

  // Four vectors' worth of a tile; returns NaN somewhere where an output before bias and residual is not finite.
  template <int kHeight, int kWidth, bool kPartial>
  __attribute__((always_inline)) Vec write_vector(const WinogradShape& s, const WinogradTile& t, const float* m,
                                                  int64_t m_step, int64_t column) const {
    const int64_t n = s.columns - column, row_step = s.map.Q * s.columns;
    Vec half[kHeight * kPoints], out[kHeight * kWidth], check = Vec::zero();
#pragma GCC unroll 9
    for (int j = 0; j < kPoints; ++j) {
      if (!Scheme::has(kWidth, j)) continue;
      Vec points[kPoints];
#pragma GCC unroll 9
      for (int i = 0; i < kPoints; ++i)
        if (Scheme::has(kHeight, i)) points[i] = Vec::load(m + (i * kPoints + j) * m_step);
      Scheme::template output<kHeight>(points, half + j, kPoints);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kHeight; ++i) Scheme::template output<kWidth>(half + i * kPoints, out + i * kWidth, 1);

    const Vec add = bias ? Vec::load(bias + column) : Vec::zero();
    const int64_t first = ((t.n * s.map.P + t.p) * s.map.Q + t.q) * s.columns + column;
    const auto finish = [&](Vec value, int i, int j) {
      const int64_t at = first + i * row_step + j * s.columns;
      value = value + add;
      if (residual) value = value + (kPartial ? Vec::load(residual + at, n) : Vec::load(residual + at));
      value = value.clamp(lo, hi);
      kPartial ? value.store(y + at, n) : value.store(y + at);
    };
    const int64_t height = least(kHeight, s.map.P - t.p), width = least(kWidth, s.map.Q - t.q);
    if (height == kHeight && width == kWidth) {
#pragma GCC unroll 4
      for (int i = 0; i < kHeight; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kWidth; ++j) {
          check = check.fma(out[i * kWidth + j], Vec::zero());
          finish(out[i * kWidth + j], i, j);
        }
      return check;
    }
    Vec over_the_edge[kHeight * kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kHeight * kWidth; ++i) over_the_edge[i] = out[i];
    for (int i = 0; i < height; ++i)
      for (int j = 0; j < width; ++j) {
        check = check.fma(over_the_edge[i * kWidth + j], Vec::zero());
        finish(over_the_edge[i * kWidth + j], i, j);
      }
    return check;
  }

  // The panel's columns of one tile, `m` [point][width]. Whether all outputs are finite.
  bool write_tile(const WinogradShape& s, const WinogradTile& t, const float* m, int64_t m_step, int64_t panel) const {
    Vec check = Vec::zero();
    with_outputs(t, [&](auto height, auto width) {
      constexpr int kHeight = decltype(height)::value, kWidth = decltype(width)::value;
      const int64_t first = s.first_column(panel), last = s.first_column(panel + 1);
      for (int64_t column = first; column < last; column += Vec::kWidth)
        check = check + (column + Vec::kWidth <= s.columns
                             ? write_vector<kHeight, kWidth, false>(s, t, m + column - first, m_step, column)
                             : write_vector<kHeight, kWidth, true>(s, t, m + column - first, m_step, column));
    });
    return !check.any_nan();
  }
};

}  // namespace
}  // namespace pyserve
