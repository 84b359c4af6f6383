// uint8 pictures through a table that stays in the first cache, read once and written once, channels last.
#include "../pixels.h"
#include "element.h"

namespace pyserve {
namespace {

constexpr int64_t kLeastPixels = 1 << 15;  // worth a thread: some 20 µs

template <class T>
void picture(const PixelsProblem& p, const uint8_t* pixels, const T* table, T* y) {
  for (int64_t h = 0; h < p.H; ++h) {
    const uint8_t* red = pixels + h * p.stride_h;
    const uint8_t *green = red + p.stride_c, *blue = green + p.stride_c;
    for (int64_t w = 0; w < p.W; ++w, y += kPixelChannels) {
      y[0] = table[red[w * p.stride_w]];
      y[1] = table[kPixelValues + green[w * p.stride_w]];
      y[2] = table[2 * kPixelValues + blue[w * p.stride_w]];
    }
  }
}

template <class T>
void pictures(const PixelsProblem& p, const PixelsArgs& args, const Pool& pool) {
  const T* table = static_cast<const T*>(args.table);
  T* y = static_cast<T*>(args.y);
  const int64_t size = p.H * p.W, grain = (kLeastPixels + size - 1) / size;  // in whole pictures
  pool(p.N, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      picture(p, args.pixels + n * p.stride_n, table, y + n * size * kPixelChannels);
  });
}

}  // namespace

void normalize_pixels(const PixelsProblem& problem, const PixelsArgs& args, const Pool& pool) {
  if (problem.dtype == DType::f32) return pictures<float>(problem, args, pool);
  pictures<BFloat16>(problem, args, pool);
}

}  // namespace pyserve
