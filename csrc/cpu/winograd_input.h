// Bᵀ D B: tiles of the input to V [36][depth / width][tile][width], zeros in the padding and behind the last channel.
// Needs Vec; local to each including file.
#pragma once
#include "convert.h"
#include "winograd_tiles.h"

namespace pyserve {
namespace {

template <class T>
struct InputTile {
  const T* pixel[kSpectrum];  // where not all of it is inside the image
  const T* base;              // the first pixel
  int64_t row_step, pixel_step;
  bool inside;

  InputTile(const WinogradShape& s, const T* input, const T* zeros, const WinogradTile& t)
      : row_step(s.W * s.depth), pixel_step(s.depth) {
    const int64_t h = t.p - s.pad_h, w = t.q - s.pad_w;
    base = input + (t.n * s.H + h) * row_step + w * pixel_step;
    inside = h >= 0 && w >= 0 && h + t.outputs_h + 2 <= s.H && w + t.outputs_w + 2 <= s.W;
    for (int64_t i = 0; !inside && i < t.outputs_h + 2; ++i)
      for (int64_t j = 0; j < t.outputs_w + 2; ++j) {
        const bool in_image = h + i >= 0 && h + i < s.H && w + j >= 0 && w + j < s.W;
        pixel[i * kPoints + j] = in_image ? base + i * row_step + j * pixel_step : zeros;
      }
  }
};

template <int kHeight, int kWidth, bool kInside, bool kPartial, class T>
__attribute__((always_inline)) inline void transform_input_group(const InputTile<T>& t, int64_t channel, int64_t n,
                                                                 float* v, int64_t v_step) {
  Vec half[kSpectrum];
#pragma GCC unroll 6
  for (int j = 0; j < kWidth + 2; ++j) {
    Vec d[kPoints];
#pragma GCC unroll 6
    for (int i = 0; i < kHeight + 2; ++i) {
      const T* from = (kInside ? t.base + i * t.row_step + j * t.pixel_step : t.pixel[i * kPoints + j]) + channel;
      d[i] = kPartial ? Vec::load(from, n) : Vec::load(from);
    }
    transform_input<kHeight>(d, half + j, kPoints);
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPoints; ++i) {
    if (kHeight == 3 && i == 4) continue;
    Vec row[kPoints];
    transform_input<kWidth>(half + i * kPoints, row, 1);
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j)
      if (kWidth == 4 || j != 4) row[j].store(v + (i * kPoints + j) * v_step);
  }
}

template <int kHeight, int kWidth, bool kInside, class T>
void transform_input_tile(const InputTile<T>& t, int64_t depth, float* v, int64_t v_step, int64_t group_step) {
  int64_t c = 0;
  for (; c + Vec::kWidth <= depth; c += Vec::kWidth, v += group_step)
    transform_input_group<kHeight, kWidth, kInside, false>(t, c, 0, v, v_step);
  if (c < depth) transform_input_group<kHeight, kWidth, kInside, true>(t, c, depth - c, v, v_step);
}

// Tiles [begin, end) of a block into its V.
template <class T>
void transform_inputs(const WinogradShape& s, const WinogradBlock& block, int64_t begin, int64_t end, const T* input,
                      const T* zeros, float* v, int64_t v_step) {
  const int64_t group_step = block.count * Vec::kWidth;
  for (int64_t b = begin; b < end; ++b) {
    const WinogradTile& t = block.tile[b];
    const InputTile<T> from(s, input, zeros, t);
    const auto run = [&](auto height, auto width) {
      constexpr int kHeight = decltype(height)::value, kWidth = decltype(width)::value;
      float* to = v + b * Vec::kWidth;
      if (from.inside) return transform_input_tile<kHeight, kWidth, true>(from, s.depth, to, v_step, group_step);
      transform_input_tile<kHeight, kWidth, false>(from, s.depth, to, v_step, group_step);
    };
    with_outputs(t, run);
  }
}

}  // namespace
}  // namespace pyserve
