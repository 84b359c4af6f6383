#include "checks.h"

#include <sstream>

#include "pixels.h"

namespace pyserve {
namespace {

std::string list(const std::vector<int64_t>& values) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
  out << "]";
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  throw InvalidArgument(out.str());
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

void check_clamp(const char* op, const std::string& dtype, double lo, double hi) {
  require(!Clamp{lo, hi}.active() || dtype.rfind("complex", 0) != 0, op, ": x is ", dtype,
          ", expected a real element type for an activation");
  require(lo <= hi, op, ": the activation's bounds are lo = ", lo, ", hi = ", hi, ", expected lo <= hi");
}

void check_like(const char* op, const char* name, const TensorInfo& tensor, const TensorInfo& x) {
  require(tensor.dtype == x.dtype, op, ": ", name, " is ", tensor.dtype, ", expected ", x.dtype, " like x");
  require(tensor.device == x.device, op, ": ", name, " is on ", tensor.device, ", expected ", x.device, " like x");
}

void check_sizes(const char* op, const char* name, const TensorInfo& tensor, const std::vector<int64_t>& expected,
                 const std::string& why) {
  require(tensor.sizes == expected, op, ": ", name, " is ", list(tensor.sizes), ", expected ", list(expected), why);
}

void check_pair(const char* name, const std::vector<int64_t>& values, int64_t least) {
  require(values.size() == 2, "conv2d: ", name, " has ", values.size(), " numbers, expected 2 (height, width)");
  for (const int64_t value : values)
    require(value >= least, "conv2d: ", name, " is ", list(values), ", expected each >= ", least);
}

void check_fits(char axis, const Conv2dInfo& info, int64_t size, int64_t kernel, size_t i) {
  const int64_t pad = info.padding[i], dilation = info.dilation[i];
  require(dilation * (kernel - 1) + 1 <= size + 2 * pad, "conv2d: the kernel spans ", dilation * (kernel - 1) + 1,
          " along ", axis, " (size ", kernel, ", dilation ", dilation, "), expected at most ", axis,
          " + 2·padding = ", size, " + 2·", pad, " = ", size + 2 * pad, " (x is ", list(info.x.sizes), ")");
}

void check_channels(const Conv2dInfo& info) {
  const auto &x = info.x.sizes, &w = info.weight.sizes;
  const std::string x_is = " (x is " + list(x) + ")";
  const int64_t C = x[1], K = w[0], groups = info.groups;
  require(groups >= 1, "conv2d: groups is ", groups, ", expected >= 1");
  require(C >= 1 && x[2] >= 1 && x[3] >= 1, "conv2d: x is ", list(x), ", expected C, H, W >= 1 (only N may be 0)");
  require(K >= 1 && w[2] >= 1 && w[3] >= 1, "conv2d: weight is ", list(w), ", expected every size >= 1");
  require(C % groups == 0, "conv2d: groups is ", groups, ", expected a divisor of C = ", C, x_is);
  require(K % groups == 0, "conv2d: groups is ", groups, ", expected a divisor of the number of filters K = ", K,
          " (weight is ", list(w), ")");
  require(w[1] == C / groups, "conv2d: weight has ", w[1], " input channels, expected C/groups = ", C, "/", groups,
          " = ", C / groups, x_is);
}

}  // namespace

std::optional<DType> kernel_dtype(const std::string& dtype) {
  if (dtype == "float32") return DType::f32;
  if (dtype == "bfloat16") return DType::bf16;
  if (dtype == "float64") return DType::f64;
  if (dtype == "float16") return DType::f16;
  return std::nullopt;
}

Conv2dProblem check_conv2d(const Conv2dInfo& info) {
  const auto &x = info.x.sizes, &w = info.weight.sizes;
  require(x.size() == 4, "conv2d: x has ", x.size(), " dimensions, expected 4: [N, C, H, W] (x is ", list(x), ")");
  require(w.size() == 4, "conv2d: weight has ", w.size(), " dimensions, expected 4: [K, C/groups, R, S] (weight is ",
          list(w), ")");
  check_pair("stride", info.stride, 1);
  check_pair("padding", info.padding, 0);
  check_pair("dilation", info.dilation, 1);
  check_channels(info);
  check_like("conv2d", "weight", info.weight, info.x);
  check_clamp("conv2d", info.x.dtype, info.lo, info.hi);
  check_fits('H', info, x[2], w[2], 0);
  check_fits('W', info, x[3], w[3], 1);

  Conv2dProblem p{};
  p.N = x[0], p.C = x[1], p.H = x[2], p.W = x[3], p.K = w[0], p.R = w[2], p.S = w[3];
  p.stride_h = info.stride[0], p.stride_w = info.stride[1];
  p.pad_h = info.padding[0], p.pad_w = info.padding[1];
  p.dilation_h = info.dilation[0], p.dilation_w = info.dilation[1];
  p.groups = info.groups;
  p.P = conv2d_output_size(p.H, p.R, p.stride_h, p.pad_h, p.dilation_h);
  p.Q = conv2d_output_size(p.W, p.S, p.stride_w, p.pad_w, p.dilation_w);
  p.dtype = kernel_dtype(info.x.dtype).value_or(DType::f32);
  p.clamp = {info.lo, info.hi};
  if (info.bias) {
    check_like("conv2d", "bias", *info.bias, info.x);
    check_sizes("conv2d", "bias", *info.bias, {p.K}, ": one value per filter");
  }
  if (info.residual) {
    check_like("conv2d", "residual", *info.residual, info.x);
    check_sizes("conv2d", "residual", *info.residual, {p.N, p.K, p.P, p.Q}, ": the output's sizes");
  }
  return p;
}

void check_conv2d_backward(const Conv2dInfo& info, const Conv2dProblem& p, const TensorInfo& grad,
                           const std::optional<TensorInfo>& y) {
  require(info.x.dtype.rfind("complex", 0) != 0, "conv2d_backward: x is ", info.x.dtype,
          ", expected a real element type: complex convolutions run forward only");
  check_like("conv2d_backward", "grad", grad, info.x);
  check_sizes("conv2d_backward", "grad", grad, {p.N, p.K, p.P, p.Q}, ": the output's sizes");
  require(y.has_value() || !p.clamp.active(),
          "conv2d_backward: y is missing, expected the output that lo = ", p.clamp.lo, ", hi = ", p.clamp.hi,
          " were applied to");
  if (!y) return;
  check_like("conv2d_backward", "y", *y, info.x);
  check_sizes("conv2d_backward", "y", *y, {p.N, p.K, p.P, p.Q}, ": the output's sizes");
}

void check_bias_relu(const TensorInfo& x, const std::optional<TensorInfo>& bias,
                     const std::optional<TensorInfo>& residual, double lo, double hi) {
  require(x.sizes.size() >= 2, "bias_relu: x has ", x.sizes.size(),
          " dimensions, expected at least 2: [N, C, ...] (x is ", list(x.sizes), ")");
  check_clamp("bias_relu", x.dtype, lo, hi);
  if (bias) {
    check_like("bias_relu", "bias", *bias, x);
    check_sizes("bias_relu", "bias", *bias, {x.sizes[1]}, ": one value per channel (x is " + list(x.sizes) + ")");
  }
  if (residual) {
    check_like("bias_relu", "residual", *residual, x);
    check_sizes("bias_relu", "residual", *residual, x.sizes, ": the sizes of x");
  }
}

void check_bias_relu_backward(const TensorInfo& grad, const std::optional<TensorInfo>& y, double lo, double hi) {
  const char* op = "bias_relu_backward";
  require(grad.sizes.size() >= 2, op, ": grad has ", grad.sizes.size(),
          " dimensions, expected at least 2: [N, C, ...]");
  check_clamp(op, grad.dtype, lo, hi);
  require(y.has_value() || !Clamp{lo, hi}.active(), op, ": y is missing, expected the output that lo = ", lo,
          ", hi = ", hi, " were applied to");
  if (!y) return;
  check_like(op, "y", *y, grad);
  check_sizes(op, "y", *y, grad.sizes, ": the sizes of grad");
}

void check_normalize_pixels(const TensorInfo& pixels, const TensorInfo& table) {
  const char* op = "normalize_pixels";
  require(pixels.sizes.size() == 4 && pixels.sizes[1] == kPixelChannels, op, ": pixels is ", list(pixels.sizes),
          ", expected [N, ", kPixelChannels, ", H, W]");
  require(pixels.dtype == "uint8", op, ": pixels is ", pixels.dtype, ", expected uint8");
  require(pixels.device == "cpu" || pixels.device == "meta", op, ": pixels is on ", pixels.device, ", expected cpu");
  require(table.dtype == "float32" || table.dtype == "bfloat16", op, ": table is ", table.dtype,
          ", expected float32 or bfloat16");
  require(table.device == pixels.device, op, ": table is on ", table.device, ", expected ", pixels.device,
          " like pixels");
  check_sizes(op, "table", table, {kPixelChannels, kPixelValues}, ": one value per channel and pixel value");
}

void check_batch_norm_relu(const BatchNormInfo& info) {
  const char* op = "batch_norm_relu";
  const TensorInfo& x = info.x;
  require(x.sizes.size() == 2 || x.sizes.size() == 4, op, ": x has ", x.sizes.size(),
          " dimensions, expected 2 or 4: [N, C] or [N, C, H, W] (x is ", list(x.sizes), ")");
  require(x.sizes[1] >= 1, op, ": x is ", list(x.sizes), ", expected C >= 1");
  check_clamp(op, x.dtype, info.lo, info.hi);
  require(info.eps >= 0, op, ": eps is ", info.eps, ", expected >= 0");
  require(info.mean.has_value() == info.var.has_value(), op,
          ": only one of mean and var is given, expected both or none");
  const std::string parameters = x.dtype == "float64" ? "float64" : "float32";
  const std::pair<const char*, const std::optional<TensorInfo>*> of_channels[] = {
      {"weight", &info.weight}, {"bias", &info.bias}, {"mean", &info.mean}, {"var", &info.var}};
  for (const auto& [name, tensor] : of_channels) {
    if (!tensor->has_value()) continue;
    require((*tensor)->dtype == parameters, op, ": ", name, " is ", (*tensor)->dtype, ", expected ", parameters,
            " beside x of ", x.dtype);
    require((*tensor)->device == x.device, op, ": ", name, " is on ", (*tensor)->device, ", expected ", x.device,
            " like x");
    check_sizes(op, name, **tensor, {x.sizes[1]}, ": one value per channel (x is " + list(x.sizes) + ")");
  }
  if (!info.residual) return;
  check_like(op, "residual", *info.residual, x);
  check_sizes(op, "residual", *info.residual, x.sizes, ": the sizes of x");
}

void check_batch_norm_relu_backward(const BatchNormInfo& info, const TensorInfo& grad,
                                    const std::optional<TensorInfo>& y) {
  const char* op = "batch_norm_relu_backward";
  check_like(op, "grad", grad, info.x);
  check_sizes(op, "grad", grad, info.x.sizes, ": the sizes of x");
  require(info.mean.has_value(), op, ": mean and var are missing, expected those that the forward pass used");
  if (!y) return;
  check_like(op, "y", *y, info.x);
  check_sizes(op, "y", *y, info.x.sizes, ": the sizes of x");
}

}  // namespace pyserve
