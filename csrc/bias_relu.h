// The fused clamp(x + bias + residual, lo, hi) by itself, and its backward. Free of torch and of any ISA.
#pragma once
#include <cstdint>

#include "conv2d.h"

namespace pyserve {

// x is dense: [outer][channels][inner], the bias belongs to the channels. Channels-last has inner = 1.
struct BiasReluProblem {
  int64_t outer, channels, inner;
  DType dtype;
  Clamp clamp;
  PYSERVE_INLINE int64_t numel() const { return outer * channels * inner; }
};

struct BiasReluArgs {
  const void* x;
  const void* bias;      // [channels] or null
  const void* residual;  // like x, or null
  void* y;
};

// dx = grad where the activation passed (seen in y), else 0; it is the gradient of the residual as well.
// dbias [channels] sums dx. y may be null without an activation; dx or dbias may be null where not wanted.
struct BiasReluBackwardArgs {
  const void* grad;
  const void* y;
  void* dx;
  void* dbias;
};

}  // namespace pyserve
