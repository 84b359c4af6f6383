// The same operators by ATen, for what our kernels do not have (element types, devices). Always counted, with why.
#pragma once
#include <array>

#include "registry.h"
#include "tensors.h"

namespace pyserve::aten {

using torch::stable::detail::from;
using torch::stable::detail::to;

template <size_t n>
Tensor call(const char* name, const char* overload, std::array<StableIValue, n> stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return to<Tensor>(stack[0]);
}

inline void count(const char* op, const Tensor& x) {
  count_fallback(op, dtype_name(x.scalar_type()) + " on " +
                         (x.is_cpu()    ? "cpu"
                          : x.is_cuda() ? "cuda"
                                        : "other devices"));
}

inline Tensor scalar_like(const Tensor& x, double value) {
  return torch::stable::full(std::vector<int64_t>{}, value, x.scalar_type(), std::nullopt, x.device());
}

inline OptionalTensor bound_like(const Tensor& x, double value, bool open) {
  return open ? std::nullopt : OptionalTensor(scalar_like(x, value));
}

// clamp(x + residual, lo, hi)
inline Tensor epilogue(Tensor x, const OptionalTensor& residual, Clamp clamp) {
  if (residual) x = torch::stable::subtract(x, *residual, -1.0);
  if (!clamp.active()) return x;
  return call<3>("aten::clamp", "Tensor",
                 {from(x), from(bound_like(x, clamp.lo, clamp.lo == -INFINITY)),
                  from(bound_like(x, clamp.hi, clamp.hi == INFINITY))});
}

// grad where the activation passed, else 0. Written so that NaN in y passes, as in the kernels.
inline Tensor masked(const Tensor& grad, const OptionalTensor& y, Clamp clamp) {
  if (!clamp.active()) return grad;
  const Tensor zero = scalar_like(grad, 0);
  Tensor result = grad;
  if (clamp.lo > -INFINITY) {
    const Tensor blocked = call<2>("aten::le", "Tensor", {from(*y), from(scalar_like(*y, clamp.lo))});
    result = call<3>("aten::where", "self", {from(blocked), from(zero), from(result)});
  }
  if (clamp.hi < INFINITY) {
    const Tensor blocked = call<2>("aten::ge", "Tensor", {from(*y), from(scalar_like(*y, clamp.hi))});
    result = call<3>("aten::where", "self", {from(blocked), from(zero), from(result)});
  }
  return result;
}

// Sums over everything but the channels.
inline Tensor channel_sum(const Tensor& grad) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < grad.dim(); ++d)
    if (d != 1) dims.push_back(d);
  return torch::stable::sum(grad, dims);
}

inline Tensor conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     const Conv2dInfo& info) {
  count("conv2d", x);
  const Tensor y = call<7>("aten::conv2d", "",
                           {from(x), from(weight), from(bias), from(info.stride), from(info.padding),
                            from(info.dilation), from(info.groups)});
  return torch::stable::contiguous(epilogue(y, residual, {info.lo, info.hi}), output_format(x));
}

inline Tensor max_pool2d(const Tensor& x, const MaxPool& pool) {
  const auto both = [](int64_t number) { return from(std::vector<int64_t>{number, number}); };
  return call<6>("aten::max_pool2d", "",
                 {from(x), both(pool.size), both(pool.stride), both(pool.pad), both(1), from(false)});
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline Gradients conv2d_backward(const Tensor& grad, const OptionalTensor& y, const Tensor& x, const Tensor& weight,
                                 const Conv2dInfo& info, const std::vector<bool>& wanted) {
  count("conv2d_backward", x);
  const Tensor g = masked(grad, y, {info.lo, info.hi});
  const std::array<bool, 3> mask = {wanted[0], wanted[1], wanted[2]};
  std::array<StableIValue, 11> stack = {from(g),
                                        from(x),
                                        from(weight),
                                        from(std::optional<std::vector<int64_t>>(std::vector<int64_t>{weight.size(0)})),
                                        from(info.stride),
                                        from(info.padding),
                                        from(info.dilation),
                                        from(false),
                                        from(std::vector<int64_t>{0, 0}),
                                        from(info.groups),
                                        from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask.data(), 3))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, 3> d = {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
  return {wanted[0] ? torch::stable::contiguous(d[0], output_format(x)) : absent_like(x),
          wanted[1] ? torch::stable::contiguous(d[1], output_format(weight)) : absent_like(x),
          wanted[2] ? d[2] : absent_like(x),
          wanted[3] ? torch::stable::contiguous(torch::stable::clone(g), output_format(x)) : absent_like(x)};
}

inline Tensor bias_relu(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual, Clamp clamp) {
  count("bias_relu", x);
  Tensor sum = x;
  if (bias) {
    std::vector<int64_t> sizes(static_cast<size_t>(x.dim()), 1);
    sizes[1] = x.size(1);
    sum = torch::stable::subtract(x, torch::stable::reshape(*bias, sizes), -1.0);
  }
  const Tensor y = torch::stable::contiguous(epilogue(sum, residual, clamp), output_format(x));
  return y.const_data_ptr() == x.const_data_ptr() ? torch::stable::clone(y) : y;  // an operator never returns its input
}

inline std::tuple<Tensor, Tensor> bias_relu_backward(const Tensor& grad, const OptionalTensor& y, Clamp clamp,
                                                     bool bias_wanted) {
  count("bias_relu_backward", grad);
  const Tensor g = torch::stable::contiguous(masked(grad, y, clamp), output_format(grad));
  return {g.const_data_ptr() == grad.const_data_ptr() ? torch::stable::clone(g) : g,
          bias_wanted ? channel_sum(g) : absent_like(grad)};
}

}  // namespace pyserve::aten
