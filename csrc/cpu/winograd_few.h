// Winograd products for so few tiles that transforming the weights is most of the work: the register tile is (a part
// of) a row of the spectrum, up to six points × up to Vec::kFewTiles tiles × one vector of output channels, and each
// weight is transformed in registers on the way into its products.
//
//     m[i, j][tile] (+)= Σ_l v[i, j][l][tile] · (G w_l Gᵀ)[i, j]
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

// Points kPoint … kLast − 1 of a row.
template <class Scheme, int kPoint, int kLast, int kTiles>
__attribute__((always_inline)) inline void add_points(const Vec* half, const float* v, int64_t v_step,
                                                      Vec (*sum)[kTiles]) {
  const Vec u = Scheme::template weight<Scheme::weight_of(kPoint)>(half[0], half[1], half[2]);
#pragma GCC unroll 8
  for (int t = 0; t < kTiles; ++t) (*sum)[t] = (*sum)[t].fma(Vec::set(v[kPoint * v_step + t * Vec::kWidth]), u);
  if constexpr (kPoint + 1 < kLast) add_points<Scheme, kPoint + 1, kLast>(half, v, v_step, sum + 1);
}

template <class Scheme, int kRow, int kPart, int kTiles>
__attribute__((noinline)) void multiply_few(const FewProduct& p) {
  constexpr int kFirst = Scheme::kPart[kPart], kLast = Scheme::kPart[kPart + 1], kCount = kLast - kFirst;
  Vec sum[kCount][kTiles];
#pragma GCC unroll 6
  for (int j = 0; j < kCount; ++j)
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t)
      sum[j][t] = p.first ? Vec::zero() : Vec::load(p.m + (kFirst + j) * p.m_step + t * Vec::kWidth);
  const float* w = p.taps;
  for (int64_t l = 0; l < p.depth; ++l, w += kTaps * Vec::kWidth) {
    Vec half[3];
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      const float* column = w + s * Vec::kWidth;
      half[s] = Scheme::template weight<Scheme::weight_of(kRow)>(Vec::load(column), Vec::load(column + 3 * Vec::kWidth),
                                                                 Vec::load(column + 6 * Vec::kWidth));
    }
    // Each of the first rows brings in some of the nine lines that come at this place in the next piece.
    const char* next = reinterpret_cast<const char*>(w + kTaps * Vec::kWidth * kFewDepth);
    if (kPart == 0) prefetch_far(next + kRow * Vec::kWidth * sizeof(float));
    if (kPart == 0 && kRow + Scheme::kPoints < kTaps)
      prefetch_far(next + (kRow + Scheme::kPoints) * Vec::kWidth * sizeof(float));
    add_points<Scheme, kFirst, kLast>(half, p.v + l / Vec::kWidth * p.group_step + l % Vec::kWidth, p.v_step, sum);
  }
#pragma GCC unroll 6
  for (int j = 0; j < kCount; ++j)
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) sum[j][t].store(p.m + (kFirst + j) * p.m_step + t * Vec::kWidth);
}

// All points of a row, for 1 ≤ tiles ≤ Vec::kFewTiles.
template <class Scheme, int kRow = 0, int kTiles = 1>
void multiply_few(int64_t row, int64_t tiles, const FewProduct& p) {
  if (row == kRow && tiles == kTiles) {
    multiply_few<Scheme, kRow, 0, kTiles>(p);
    if constexpr (Scheme::kParts == 2) multiply_few<Scheme, kRow, 1, kTiles>(p);
    return;
  }
  if constexpr (kTiles < Vec::kFewTiles)
    if (row == kRow) return multiply_few<Scheme, kRow, kTiles + 1>(row, tiles, p);
  if constexpr (kRow + 1 < Scheme::kPoints)
    if (row != kRow) multiply_few<Scheme, kRow + 1, 1>(row, tiles, p);
}

}  // namespace
}  // namespace pyserve
