// Max pooling and adaptive average pooling, of dense channels-last tensors. Free of torch and of any ISA.
#pragma once
#include <cstdint>

#include "conv2d.h"

namespace pyserve {

// x [N][H][W][C] to y [N][P][Q][C].
struct PoolingProblem {
  int64_t N, H, W, C, P, Q;
  int64_t R, S, stride_h, stride_w, pad_h, pad_w;  // of max pooling alone
  DType dtype;
};

struct PoolingArgs {
  const void* x;
  void* y;
};

// The input rows (or columns) that one output position takes.
struct PoolingWindow {
  int64_t begin, end;
};

PYSERVE_INLINE PoolingWindow max_pool2d_window(int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t size) {
  const int64_t begin = out * stride - pad, end = begin + kernel;
  return {begin < 0 ? 0 : begin, end > size ? size : end};
}

// PyTorch's rule for adaptive pooling: from ⌊out·size/outputs⌋ to ⌈(out + 1)·size/outputs⌉.
PYSERVE_INLINE PoolingWindow average_pool2d_window(int64_t out, int64_t outputs, int64_t size) {
  return {out * size / outputs, ((out + 1) * size + outputs - 1) / outputs};
}

}  // namespace pyserve
