// BatchNorm with residual and clamp, and its backward. Free of torch and of any ISA.
#pragma once
#include <cstdint>

#include "conv2d.h"

namespace pyserve {

// x is dense and channels-last: [rows][channels]. Statistics, weight and bias are float32, float64 beside float64.
struct BatchNormProblem {
  int64_t rows, channels;
  DType dtype;
  bool training;  // statistics of x; else those given
  double eps;
  Clamp clamp;
};

// y = clamp((x - mean) · inv_std · weight + bias + residual). In training mean and inv_std [channels] are written:
// inv_std = 1 / sqrt(variance + eps), the variance that of the rows, not corrected. Else they are read.
struct BatchNormReluArgs {
  const void* x;
  const void* weight;
  const void* bias;
  const void* residual;  // like x, or null
  void* y;
  void* mean;
  void* inv_std;
};

// The gradients of x, weight and bias; that of the residual is grad where the activation passed (seen in y).
// y may be null without an activation, dresidual where it is not wanted.
struct BatchNormReluBackwardArgs {
  const void* grad;
  const void* y;
  const void* x;
  const void* weight;
  const void* mean;
  const void* inv_std;
  void* dx;
  void* dweight;
  void* dbias;
  void* dresidual;
};

}  // namespace pyserve
