// BatchNorm with residual and activation, and its backward. Free of torch and of any ISA.
#pragma once
#include <cstdint>

#include "conv2d.h"

namespace pyserve {

// Tensors are dense and channels-last: x, residual, y and their gradients [rows][channels], rows = N·H·W. What belongs
// to the channels (weight, bias, statistics) is float32, float64 beside float64 tensors.
struct BatchNormProblem {
  int64_t rows, channels;
  DType dtype;
  bool training;  // statistics of this batch; else those that are given
  double eps;
  Clamp clamp;
  PYSERVE_INLINE int64_t numel() const { return rows * channels; }
};

// y = clamp((x − mean) / √(var + eps) · weight + bias + residual). mean and var are written in training, else read; var
// is the biased variance. weight and bias may be null for ones and zeros, residual for none, y where only the
// statistics are wanted.
struct BatchNormReluArgs {
  const void *x, *weight, *bias, *residual;
  void *y, *mean, *var;
};

// The activation's mask is seen in y; without a residual y may be null, and is computed again from x. dresidual is the
// masked gradient. All outputs may be null where not wanted.
struct BatchNormReluBackwardArgs {
  const void *grad, *y, *x, *weight, *bias, *mean, *var;
  void *dx, *dweight, *dbias, *dresidual;
};

}  // namespace pyserve
