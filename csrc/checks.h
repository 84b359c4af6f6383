// Arguments → problem struct, or an error sentence with the values. The sentences of all devices, of the fake (meta)
// implementations and of the Python wrapper come from here. Free of torch.
#pragma once
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch_norm_relu.h"
#include "bias_relu.h"
#include "conv2d.h"

namespace pyserve {

// What a check needs to know of a tensor.
struct TensorInfo {
  std::vector<int64_t> sizes;
  std::string dtype;   // "float32"
  std::string device;  // "cpu", "cuda:0"
};

struct Conv2dInfo {
  TensorInfo x, weight;
  std::optional<TensorInfo> bias, residual;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  double lo, hi;
};

// Throws this; Python sees a RuntimeError from the operator (from torch 2.14 on _C.InvalidArgument, a ValueError), and
// InvalidArgumentError from the wrapper.
struct InvalidArgument : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The element type our kernels have, or nothing where ATen has to do it.
std::optional<DType> kernel_dtype(const std::string& dtype);

// Sizes only: `dtype` is float32 where our kernels do not have the element type.
Conv2dProblem check_conv2d(const Conv2dInfo& info);
// Checks grad (and y, where given) against a checked problem.
void check_conv2d_backward(const Conv2dInfo& info, const Conv2dProblem& problem, const TensorInfo& grad,
                           const std::optional<TensorInfo>& y);

struct BatchNormInfo {
  TensorInfo x;
  std::optional<TensorInfo> weight, bias, residual, mean, var;
  double eps, lo, hi;
};

void check_batch_norm_relu(const BatchNormInfo& info);
// Checks grad (and y, where given) beside what check_batch_norm_relu has checked.
void check_batch_norm_relu_backward(const BatchNormInfo& info, const TensorInfo& grad,
                                    const std::optional<TensorInfo>& y);

void check_bias_relu(const TensorInfo& x, const std::optional<TensorInfo>& bias,
                     const std::optional<TensorInfo>& residual, double lo, double hi);
void check_bias_relu_backward(const TensorInfo& grad, const std::optional<TensorInfo>& y, double lo, double hi);

void check_normalize_pixels(const TensorInfo& pixels, const TensorInfo& table);

}  // namespace pyserve
