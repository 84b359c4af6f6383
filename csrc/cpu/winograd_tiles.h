// How an output map is cut into Winograd tiles: along each axis as few as tiles of four outputs can be, and as many of
// them with three outputs as the size allows (14 = 4 + 4 + 3 + 3: 22 products instead of 24; 5 = 3 + 3, one of them
// over the edge). Tiles are numbered image by image, row by row.
//
// Three outputs leave some points out, so a product at point (i, j) concerns only tiles that have that point. Within a
// block tiles are ordered by class (height × width) 4×3, 4×4, 3×4, 3×3: then those are contiguous for every point.
// Needs Vec; local to each including file.
#pragma once
#include <cstdint>

#include "../conv2d.h"
#include "gather.h"
#include "winograd_transform.h"

namespace pyserve {
namespace {

constexpr int64_t kMostTiles = 128;  // per block
constexpr int64_t kTaps = 9;

struct WinogradAxis {
  int64_t fours, threes;
  explicit WinogradAxis(int64_t size) {
    const int64_t count = ceil_div(size, 4);
    threes = least(4 * count - size, count);
    fours = count - threes;
  }
  int64_t count() const { return fours + threes; }
  int64_t start(int64_t i) const { return i <= fours ? 4 * i : 4 * fours + 3 * (i - fours); }
  int32_t outputs(int64_t i) const { return i < fours ? 4 : 3; }
};

struct WinogradTile {
  int64_t n, p, q;               // image, first output row and column
  int32_t outputs_h, outputs_w;  // 4 or 3
  int order() const { return outputs_h == 4 ? (outputs_w == 3 ? 0 : 1) : (outputs_w == 4 ? 2 : 3); }
};

struct WinogradMap {
  int64_t images, P, Q;
  WinogradAxis rows, columns;
  WinogradMap(int64_t images, int64_t P, int64_t Q) : images(images), P(P), Q(Q), rows(P), columns(Q) {}
  int64_t tiles() const { return images * rows.count() * columns.count(); }
};

// Tiles [first, first + count) of a map, ordered by class.
struct WinogradBlock {
  int64_t count;
  WinogradTile tile[kMostTiles];
  int64_t end[4];  // of each class

  WinogradBlock(const WinogradMap& map, int64_t first, int64_t count) : count(count) {
    int64_t j = first % map.columns.count(), i = first / map.columns.count() % map.rows.count();
    int64_t n = first / map.columns.count() / map.rows.count(), fill[4] = {0, 0, 0, 0};
    WinogradTile in_order[kMostTiles];
    for (int64_t b = 0; b < count; ++b) {
      in_order[b] = {n, map.rows.start(i), map.columns.start(j), map.rows.outputs(i), map.columns.outputs(j)};
      ++fill[in_order[b].order()];
      if (++j == map.columns.count()) j = 0, ++i;
      if (i == map.rows.count()) i = 0, ++n;
    }
    for (int64_t c = 0, sum = 0; c < 4; ++c) end[c] = sum += fill[c], fill[c] = end[c] - fill[c];
    for (int64_t b = 0; b < count; ++b) tile[fill[in_order[b].order()]++] = in_order[b];
  }
  // The tiles that have a point, given whether tiles of three rows, and of three columns, have it.
  int64_t first_with(bool, bool three_columns) const { return three_columns ? 0 : end[0]; }
  int64_t last_with(bool three_rows, bool three_columns) const {
    return !three_rows ? end[1] : !three_columns ? end[2] : count;
  }
};

// The same cut into rows of register tiles, of about equal number.
struct WinogradRows {
  int64_t parts, start[kMostTiles + 1];
  WinogradRows() = default;
  WinogradRows(int64_t first, int64_t last, int64_t most) : parts(ceil_div(last - first, most)) {
    for (int64_t i = 0; i <= parts; ++i) start[i] = parts == 0 ? first : first + (last - first) * i / parts;
  }
};

struct WinogradSchedule {
  WinogradRows rows[4];
  WinogradSchedule(const WinogradBlock& block, int64_t most) {
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 2; ++j)
        rows[2 * i + j] = WinogradRows(block.first_with(i != 0, j != 0), block.last_with(i != 0, j != 0), most);
  }
  const WinogradRows& with(bool three_rows, bool three_columns) const { return rows[2 * three_rows + three_columns]; }
};

constexpr int64_t kMostColumns = Vec::kMostVectors * Vec::kWidth;

struct WinogradShape {
  WinogradMap map;
  int64_t H, W, pad_h, pad_w, stride;  // of the input
  int64_t depth, columns;              // input and output channels
  bool kcrs, gradient;                 // layout of the weights; whether they are turned and exchanged
  int64_t panel_vectors;               // output channels go in panels of at most so many vectors

  int64_t words() const { return ceil_div(depth, Vec::kPerWord); }  // of input channels, as Vec::dot takes them
  int64_t groups() const { return ceil_div(words(), Vec::kWidth); }
  int64_t vectors() const { return ceil_div(columns, Vec::kWidth); }
  int64_t padded() const { return vectors() * Vec::kWidth; }
  int64_t panels() const { return ceil_div(vectors(), panel_vectors); }
  int64_t first_column(int64_t panel) const { return vectors() * panel / panels() * Vec::kWidth; }
  int64_t u_size() const { return kWeights * kWeights * words() * padded(); }
  int64_t taps_size() const { return kTaps * depth * padded(); }
  // In the transformed weights, and in the taps packed as they are.
  template <class T>
  T* u_at(T* u, int64_t panel, int64_t weight) const {
    const int64_t first = first_column(panel);
    return u + words() * (kWeights * kWeights * first + weight * (first_column(panel + 1) - first));
  }
  template <class T>
  T* taps_at(T* taps, int64_t panel, int64_t channel) const {
    const int64_t first = first_column(panel);
    return taps + kTaps * (depth * first + channel * (first_column(panel + 1) - first));
  }
};

template <class Scheme>
WinogradShape winograd_forward_shape(const Conv2dProblem& p) {
  return {{p.N, p.P, p.Q}, p.H, p.W, p.pad_h, p.pad_w, Scheme::kStride, p.C, p.K, p.kcrs, false, Vec::kMostVectors};
}

inline WinogradShape winograd_dgrad_shape(const Conv2dProblem& p) {
  return {{p.N, p.H, p.W}, p.P, p.Q, 2 - p.pad_h, 2 - p.pad_w, 1, p.K, p.C, p.kcrs, true, Vec::kMostVectors};
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// f(height, width) with a tile's outputs as constants.
template <class F>
__attribute__((always_inline)) inline void with_outputs(const WinogradTile& t, F&& f) {
  if (t.outputs_h == 4 && t.outputs_w == 4) return f(Constant<4>{}, Constant<4>{});
  if (t.outputs_h == 4) return f(Constant<4>{}, Constant<3>{});
  if (t.outputs_w == 4) return f(Constant<3>{}, Constant<4>{});
  f(Constant<3>{}, Constant<3>{});
}

}  // namespace
}  // namespace pyserve
