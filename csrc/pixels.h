// Decoded pictures to a network's first input. Free of torch and of any ISA.
#pragma once
#include <cstdint>

#include "conv2d.h"
#include "parallel.h"

namespace pyserve {

constexpr int64_t kPixelChannels = 3;
constexpr int64_t kPixelValues = 256;

// Pictures uint8 [N, 3, H, W] at any strides, in elements: a crop, or [N, H, W, 3], as it lies.
struct PixelsProblem {
  int64_t N, H, W;
  int64_t stride_n, stride_c, stride_h, stride_w;
  DType dtype;  // of table and y: float32 or bfloat16
};

struct PixelsArgs {
  const uint8_t* pixels;
  const void* table;  // [3][256]: what each value of each channel becomes
  void* y;            // [N][H][W][3]
};

void normalize_pixels(const PixelsProblem& problem, const PixelsArgs& args, const Pool& pool);

}  // namespace pyserve
