// The register tile that Winograd's products run on: `rows` tiles × `vectors` vectors of output channels, summed over
// input channels,
//
//     m[row][column] (+)= Σ_l a[row][l] · b[l][column].
//
// a is blocked as [l / width][row][width] with `group_step` floats from one group of channels to the next, so that all
// broadcasts of a group lie at constant offsets; b is [l][columns], m is [row][columns], columns = vectors · width.
// The shape follows Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008: sums fill the
// registers, b streams through the L1 cache. Needs Vec; local to each including file.
#pragma once
#include <cstdint>
#include <utility>

#include "prefetch.h"

namespace pyserve {
namespace {

struct TileProduct {
  const float* a;
  int64_t group_step;
  int64_t depth;
  const float* b;
  float* m;
  bool first;              // starts from zero; otherwise adds to m
  const char* prefetch;    // what to bring into the caches meanwhile, and
  int64_t prefetch_bytes;  // how much of it per step of depth
};

template <int kRows, int kVectors>
__attribute__((noinline)) void multiply_tile(const TileProduct& t) {
  constexpr int kWidth = Vec::kWidth, kColumns = kVectors * kWidth;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = t.first ? Vec::zero() : Vec::load(t.m + r * kColumns + v * kWidth);

  const float *a = t.a, *b = t.b;
  const char* prefetch = t.prefetch;
  const auto step = [&](int l) {
    Vec column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = Vec::load(b + v * kWidth);
    prefetch_read(prefetch);
    prefetch += t.prefetch_bytes, b += kColumns;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec value = Vec::set(a[r * kWidth + l]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = sum[r][v].dot(value, column[v]);
    }
  };
  int64_t left = t.depth;
  for (; left >= kWidth; left -= kWidth, a += t.group_step)
#pragma GCC unroll 16
    for (int l = 0; l < kWidth; ++l) step(l);
  for (int l = 0; l < left; ++l) step(l);

#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v].store(t.m + r * kColumns + v * kWidth);
}

using TileKernel = void (*)(const TileProduct&);

template <int kVectors, int... kRowsLess1>
constexpr TileKernel tile_kernel(int rows, std::integer_sequence<int, kRowsLess1...>) {
  constexpr TileKernel table[] = {multiply_tile<kRowsLess1 + 1, kVectors>...};
  return table[rows - 1];
}

// For 1 ≤ rows ≤ Vec::rows(vectors) and 1 ≤ vectors ≤ Vec::kMostVectors.
template <int kVectors = 1>
TileKernel tile_kernel(int vectors, int rows) {
  if (vectors == kVectors) return tile_kernel<kVectors>(rows, std::make_integer_sequence<int, Vec::rows(kVectors)>{});
  if constexpr (kVectors < Vec::kMostVectors) return tile_kernel<kVectors + 1>(vectors, rows);
  return nullptr;
}

}  // namespace
}  // namespace pyserve
