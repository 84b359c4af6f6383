// Bᵀ D B: tiles of the input to V [point][words / width][tile][width], zeros in the padding and behind the last
// channel. Needs Vec; local to each including file.
#pragma once
#include "convert.h"
#include "winograd_tiles.h"

namespace pyserve {
namespace {

template <class Scheme, class T>
struct InputTile {
  static constexpr int kSide = Scheme::inputs(4);
  alignas(64) const T* pixel[kSide * kSide];  // where not all of it is inside the image
  const T* base;                              // the first pixel
  int64_t row_step, pixel_step;
  bool inside;

  InputTile(const WinogradShape& s, const T* input, const T* zeros, const WinogradTile& t)
      : row_step(s.W * s.depth), pixel_step(s.depth) {
    const int64_t h = t.p * s.stride - s.pad_h, w = t.q * s.stride - s.pad_w;
    const int64_t rows = Scheme::inputs(t.outputs_h), columns = Scheme::inputs(t.outputs_w);
    base = input + (t.n * s.H + h) * row_step + w * pixel_step;
    inside = h >= 0 && w >= 0 && h + rows <= s.H && w + columns <= s.W;
    for (int64_t i = 0; !inside && i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const bool in_image = h + i >= 0 && h + i < s.H && w + j >= 0 && w + j < s.W;
        pixel[i * kSide + j] = in_image ? base + i * row_step + j * pixel_step : zeros;
      }
  }
};

template <class Scheme, int kHeight, int kWidth, bool kInside, bool kPartial, class T>
__attribute__((always_inline)) inline void transform_input_group(const InputTile<Scheme, T>& t, int64_t channel,
                                                                 int64_t n, Vec::Factor* v, int64_t v_step) {
  constexpr int kPoints = Scheme::kPoints, kSide = Scheme::inputs(4);
  constexpr int kRows = Scheme::inputs(kHeight), kColumns = Scheme::inputs(kWidth);
  Vec half[kPoints * kSide];
#pragma GCC unroll 9
  for (int j = 0; j < kColumns; ++j) {
    Vec d[kSide];
#pragma GCC unroll 9
    for (int i = 0; i < kRows; ++i) {
      const T* from = (kInside ? t.base + i * t.row_step + j * t.pixel_step : t.pixel[i * kSide + j]) + channel;
      d[i] = kPartial ? Vec::load(from, n) : Vec::load(from);
    }
    Scheme::template input<kHeight>(d, half + j, kSide);
  }
#pragma GCC unroll 9
  for (int i = 0; i < kPoints; ++i) {
    if (!Scheme::has(kHeight, i)) continue;
    Vec row[kPoints];
    Scheme::template input<kWidth>(half + i * kSide, row, 1);
#pragma GCC unroll 9
    for (int j = 0; j < kPoints; ++j)
      if (Scheme::has(kWidth, j)) row[j].store(v + (i * kPoints + j) * v_step);
  }
}

template <class Scheme, int kHeight, int kWidth, bool kInside, class T>
void transform_input_tile(const InputTile<Scheme, T>& t, int64_t depth, float* v, int64_t v_step, int64_t group_step) {
  constexpr int64_t kGroup = Vec::kWidth * Vec::kPerWord;
  for (int64_t c = 0; c < depth; c += Vec::kWidth) {
    Vec::Factor* to = reinterpret_cast<Vec::Factor*>(v + c / kGroup * group_step) + c % kGroup;
    if (c + Vec::kWidth <= depth)
      transform_input_group<Scheme, kHeight, kWidth, kInside, false>(t, c, 0, to, v_step * Vec::kPerWord);
    else
      transform_input_group<Scheme, kHeight, kWidth, kInside, true>(t, c, depth - c, to, v_step * Vec::kPerWord);
  }
}

// Tiles [begin, end) of a block into its V, whose groups of channels are `group_step` apart.
template <class Scheme, class T>
void transform_inputs(const WinogradShape& s, const WinogradBlock& block, int64_t begin, int64_t end, const T* input,
                      const T* zeros, float* v, int64_t v_step, int64_t group_step) {
  for (int64_t b = begin; b < end; ++b) {
    const InputTile<Scheme, T> from(s, input, zeros, block.tile[b]);
    float* to = v + b * Vec::kWidth;
    with_outputs(block.tile[b], [&](auto height, auto width) {
      constexpr int kHeight = decltype(height)::value, kWidth = decltype(width)::value;
      if (from.inside)
        transform_input_tile<Scheme, kHeight, kWidth, true>(from, s.depth, to, v_step, group_step);
      else
        transform_input_tile<Scheme, kHeight, kWidth, false>(from, s.depth, to, v_step, group_step);
    });
  }
}

}  // namespace
}  // namespace pyserve
