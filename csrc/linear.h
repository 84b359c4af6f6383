// A fully connected layer. Free of torch and of any ISA.
#pragma once
#include <cstdint>

#include "conv2d.h"

namespace pyserve {

// y [N][K] = clamp(x [N][C] · weightᵀ + bias), weight [K][C].
struct LinearProblem {
  int64_t N, C, K;
  DType dtype;
  Clamp clamp;
};

struct LinearArgs {
  const void* x;
  const void* weight;
  const void* bias;  // [K] or null
  void* y;
};

}  // namespace pyserve
