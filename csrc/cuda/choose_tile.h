// Which tile size a product takes: the measured one where there is a measurement of its class, else by a rule.
#pragma once
#include <vector>

#include "../tiles.h"
#include "../variants.h"
#include "queue.h"

namespace pyserve {

// One row of the table of measurements: a class of products, and the fastest tile.
struct TunedTile {
  int32_t capability;
  Op op;
  DType dtype;
  int64_t columns, inner;
  int32_t log2_rows;  // rounded down
  TileSize tile;
};

inline const std::vector<TunedTile>& tuned_tiles() {
  static const std::vector<TunedTile> rows = {
#include "tuned_tiles.inc"
  };
  return rows;
}

inline int32_t log2_of(int64_t value) {
  int32_t log2 = 0;
  while (value >>= 1) ++log2;
  return log2;
}

// Results do not depend on the tile, but where the sum is cut into parts (gradient of weight), their order does.
inline TileSize choose_tile(Op op, DType dtype, int64_t rows, int64_t columns, int64_t inner, int64_t groups,
                            const Queue& queue) {
  if (queue.tile >= 0) return static_cast<TileSize>(queue.tile);
  for (const TunedTile& row : tuned_tiles())
    if (row.capability == queue.capability && row.op == op && row.dtype == dtype && row.columns == columns &&
        row.inner == inner && row.log2_rows == log2_of(rows))
      return row.tile;
  const auto tiles = [&](int64_t tile_rows, int64_t tile_columns) {
    return (rows + tile_rows - 1) / tile_rows * ((columns + tile_columns - 1) / tile_columns) * groups;
  };
  if (op == Op::conv2d_wgrad) return rows > 64 && columns > 64 ? TileSize::large : TileSize::small;
  // Large tiles where they fill the GPU twice; fewer columns where there are no more.
  const int64_t fill = 2 * queue.multiprocessors;
  if (columns <= 32) return TileSize::narrow;
  if (columns > 64 && tiles(128, 128) >= fill) return TileSize::large;
  return tiles(128, 64) >= fill ? TileSize::medium : TileSize::small;
}

}  // namespace pyserve
