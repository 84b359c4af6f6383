// Winograd products for so few tiles that transforming the weights is most of the work: the register tile is a row of the
// spectrum, six points × up to Vec::kFewTiles tiles × one vector of output channels, and each weight is transformed in
// registers on the way into its products.
//
//     m[i·6 + j][tile] (+)= Σ_l v[i·6 + j][l][tile] · (G w_l Gᵀ)[i][j]
//
// Needs Vec; local to each including file.
#pragma once
#include "prefetch.h"
#include "winograd_weights.h"

namespace pyserve {
namespace {

constexpr int64_t kFewDepth = 32;  // input channels at a time: their taps stay in the L1 cache for all six rows

struct FewProduct {
  const float* taps;  // [l][9][width]
  int64_t depth;
  const float* v;  // point (i, 0): [l / width][tile][width]
  int64_t v_step, group_step;
  float* m;  // point (i, 0): [tile][width]
  int64_t m_step;
  bool first;  // starts from zero; otherwise adds to m
};

template <int kPoint, int kRow, int kTiles>
__attribute__((always_inline)) inline void add_point(const Vec* half, const float* v, Vec* sum) {
  const Vec u = transform_weights<kPoint>(half[0], half[1], half[2]);
#pragma GCC unroll 8
  for (int t = 0; t < kTiles; ++t) sum[t] = sum[t].fma(Vec::set(v[t * Vec::kWidth]), u);
}

template <int kRow, int kTiles>
__attribute__((noinline)) void multiply_few(const FewProduct& p) {
  Vec sum[kPoints][kTiles];
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j)
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t)
      sum[j][t] = p.first ? Vec::zero() : Vec::load(p.m + j * p.m_step + t * Vec::kWidth);
  const float *w = p.taps, *v = p.v;
  for (int64_t l = 0; l < p.depth; ++l, w += kTaps * Vec::kWidth) {
    Vec half[3];
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      const float* column = w + s * Vec::kWidth;
      half[s] = transform_weights<kRow>(Vec::load(column), Vec::load(column + 3 * Vec::kWidth),
                                        Vec::load(column + 6 * Vec::kWidth));
    }
    // Each row brings in two or one of the nine lines that come at this place in the next piece.
    const char* next = reinterpret_cast<const char*>(w + kTaps * Vec::kWidth * kFewDepth);
    prefetch_far(next + kRow * Vec::kWidth * sizeof(float));
    if (kRow < 3) prefetch_far(next + (kRow + 6) * Vec::kWidth * sizeof(float));
    const float* at = v + l / Vec::kWidth * p.group_step + l % Vec::kWidth;
    add_point<0, kRow, kTiles>(half, at, sum[0]);
    add_point<1, kRow, kTiles>(half, at + p.v_step, sum[1]);
    add_point<2, kRow, kTiles>(half, at + 2 * p.v_step, sum[2]);
    add_point<3, kRow, kTiles>(half, at + 3 * p.v_step, sum[3]);
    add_point<4, kRow, kTiles>(half, at + 4 * p.v_step, sum[4]);
    add_point<5, kRow, kTiles>(half, at + 5 * p.v_step, sum[5]);
  }
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j)
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) sum[j][t].store(p.m + j * p.m_step + t * Vec::kWidth);
}

// For 1 ≤ tiles ≤ Vec::kFewTiles.
template <int kRow, int kTiles = 1>
void multiply_few(int64_t tiles, const FewProduct& p) {
  if (tiles == kTiles) return multiply_few<kRow, kTiles>(p);
  if constexpr (kTiles < Vec::kFewTiles) multiply_few<kRow, kTiles + 1>(tiles, p);
}

inline void multiply_few(int64_t row, int64_t tiles, const FewProduct& p) {
  if (row == 0) return multiply_few<0>(tiles, p);
  if (row == 1) return multiply_few<1>(tiles, p);
  if (row == 2) return multiply_few<2>(tiles, p);
  if (row == 3) return multiply_few<3>(tiles, p);
  if (row == 4) return multiply_few<4>(tiles, p);
  multiply_few<5>(tiles, p);
}

}  // namespace
}  // namespace pyserve
