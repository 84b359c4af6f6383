// The sizes of output tiles that the tensor core kernels come in, and which of them a problem takes. Free of torch.
#pragma once
#include <cstdint>

namespace pyserve {

// Rows × columns of a block: 128×128, 128×64, 64×64, 128×32.
enum class TileSize : int32_t { large, medium, small, narrow, count };

inline const char* tile_name(TileSize size) {
  switch (size) {
    case TileSize::large:
      return "large";
    case TileSize::medium:
      return "medium";
    case TileSize::small:
      return "small";
    default:
      return "narrow";
  }
}

}  // namespace pyserve
