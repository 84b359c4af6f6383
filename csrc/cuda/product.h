// The sizes of a batch of matrix products, and how they are cut into tiles: what the product kernels have in common.
#pragma once
#include "divisor.h"
#include "element.h"

namespace pyserve {

struct ProductSizes {
  int64_t rows, columns, inner;  // of one group's product
  int64_t groups;                // independent products
  int64_t tiles;                 // of all groups and splits, columns running fastest, then rows, splits, groups
  int64_t share;                 // of the sum over `inner`, in one split
  Divisor row_tiles, column_tiles, splits;

  ProductSizes(int64_t rows, int64_t columns, int64_t inner, int64_t groups)
      : rows(rows), columns(columns), inner(inner), groups(groups) {}

  int64_t tiles_of(int64_t tile_rows, int64_t tile_columns) const {
    return (rows + tile_rows - 1) / tile_rows * ((columns + tile_columns - 1) / tile_columns) * groups;
  }
  // The sum is cut into `parts` of a multiple of `depth`.
  void cut(int64_t tile_rows, int64_t tile_columns, int64_t depth, int64_t parts) {
    row_tiles = Divisor((rows + tile_rows - 1) / tile_rows);
    column_tiles = Divisor((columns + tile_columns - 1) / tile_columns);
    splits = Divisor(parts);
    share = ((inner + parts - 1) / parts + depth - 1) / depth * depth;
    tiles = row_tiles.value * column_tiles.value * groups * parts;
  }
};

}  // namespace pyserve
