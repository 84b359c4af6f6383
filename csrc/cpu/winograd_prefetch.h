// Bringing the next block's input and this block's output into the caches while the products are computed: large maps
// of few channels wait for memory otherwise. Needs Vec; local to each including file.
#pragma once
#include "prefetch.h"
#include "winograd_tiles.h"

namespace pyserve {
namespace {

// The cache lines that tiles take in a tensor [images][H][W][channels], `width_bytes` from `base` on of each pixel.
// Rows and columns are those of the tiles' outputs: the two or so of an input around them come with the neighbours.
class TileLines {
 public:
  TileLines(const WinogradBlock& block, const void* base, int64_t H, int64_t W, int64_t pixel_bytes,
            int64_t width_bytes)
      : block_(block), base_(static_cast<const char*>(base)), H_(H), W_(W), pixel_(pixel_bytes), width_(width_bytes) {
    whole_ = pixel_ == width_;
    start_row();
  }

  // About how many calls of `advance` by one there are.
  int64_t count() const { return block_.count * 16 * ceil_div(width_, kLine); }

  template <class Touch>
  __attribute__((always_inline)) void advance(int64_t lines, Touch touch) {
    for (; lines > 0 && tile_ < block_.count; --lines) {
      touch(at_);
      at_ += kLine;
      if (at_ < end_) continue;
      if (--pixels_ > 0)
        next_pixel_ += pixel_, at_ = next_pixel_, end_ = at_ + width_;
      else
        next_row();
    }
  }

 private:
  void next_row() {
    if (++row_ >= block_.tile[tile_].outputs_h) row_ = 0, ++tile_;
    if (tile_ < block_.count) start_row();
  }
  void start_row() {
    const WinogradTile& t = block_.tile[tile_];
    const int64_t h = least(t.p + row_, H_ - 1), pixels = most(1, least(t.outputs_w, W_ - t.q));
    next_pixel_ = at_ = base_ + ((t.n * H_ + h) * W_ + least(t.q, W_ - 1)) * pixel_;
    pixels_ = whole_ ? 1 : pixels;
    end_ = at_ + (whole_ ? pixels * pixel_ : width_);
  }

  const WinogradBlock& block_;
  const char* base_;
  int64_t H_, W_, pixel_, width_;
  bool whole_;
  int64_t tile_ = 0, row_ = 0, pixels_ = 0;
  const char *at_, *next_pixel_, *end_;
};

}  // namespace
}  // namespace pyserve
