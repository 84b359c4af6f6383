// One operator, whatever the device: check, early return on empty, convert to channels-last, run. A device supplies
// `Backend` with
//
//     // Whether its kernels have the element type and run on the device.
//     static bool has(const Tensor& x)
//     // Whether they take the problem, forward and backward; where not, ATen does it.
//     static bool covers(const Conv2dProblem& problem)
//     // Whether one of conv2d's does the problem's max pooling, too.
//     static bool pools(const Conv2dProblem& problem, const Tensor& on)
//     // Whether those of conv2d's gradients of x and weight, as wanted, apply the activation's mask by themselves.
//     static bool masks_gradient(const Conv2dProblem& problem, const std::vector<bool>& wanted, const Tensor& on)
//     // Whether that of conv2d gives its output's mean and variance.
//     static bool gives_statistics(const Conv2dProblem& problem, const Tensor& on)
//     template <Op op> static void run(const ProblemOf<op>&, const ArgsOf<op>&, const Tensor& on)
#pragma once
#include "fallback.h"
#include "registry.h"
#include "tensors.h"

namespace pyserve {

using Ints = std::vector<int64_t>;

// Whether a backend's kernels take weights, and give their gradients, as [K][C/groups][R][S] too.
template <class Backend>
constexpr bool kTakesKcrs = false;

// The weight in a layout that the kernels take, which p tells from now on.
template <class Backend>
Tensor laid_out(const Tensor& weight, Conv2dProblem& p) {
  p.kcrs = kTakesKcrs<Backend> && !is_channels_last(weight) && weight.is_contiguous();
  return p.kcrs ? weight : channels_last(weight);
}

template <class Backend>
Tensor launch_conv2d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     Ints stride, Ints padding, Ints dilation, int64_t groups, double lo, double hi, bool tf32) {
  const Conv2dInfo info{tensor_info(x),
                        tensor_info(weight),
                        tensor_info(bias),
                        tensor_info(residual),
                        stride,
                        padding,
                        dilation,
                        groups,
                        lo,
                        hi};
  Conv2dProblem p = check_conv2d(info);
  p.tf32 = tf32;
  const MemoryFormat format = output_format(x);
  if (p.N == 0) return empty_like_in(x, {p.N, p.K, p.P, p.Q}, format);
  if (!Backend::has(x) || !Backend::covers(p)) return aten::conv2d(x, weight, bias, residual, info);

  const Tensor x_last = channels_last(x), weight_dense = laid_out<Backend>(weight, p);
  const OptionalTensor bias_dense = contiguous_bias(bias), residual_last = channels_last(residual);
  Tensor y = empty_like_in(x, {p.N, p.K, p.P, p.Q}, MemoryFormat::ChannelsLast);
  Backend::template run<Op::conv2d>(p,
                                    {x_last.const_data_ptr(), weight_dense.const_data_ptr(), data_or_null(bias_dense),
                                     data_or_null(residual_last), y.mutable_data_ptr()},
                                    x);
  return torch::stable::contiguous(y, format);
}

// Whether PyTorch's max_pool2d takes the problem's pooling; of others it tells what is wrong.
inline bool is_pooling(const Conv2dProblem& p) {
  const auto fits = [&](int64_t size) { return size + 2 * p.pool.pad >= p.pool.size; };
  const bool window = p.pool.size >= 1 && p.pool.stride >= 1 && p.pool.pad >= 0 && 2 * p.pool.pad <= p.pool.size;
  return window && fits(p.P) && fits(p.Q);
}

// In one kernel where there is one for it, else by ATen after conv2d.
template <class Backend>
Tensor launch_conv2d_pool(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Ints stride, Ints padding,
                          Ints dilation, int64_t groups, Ints pool, double lo, double hi, bool tf32) {
  Conv2dProblem p = check_conv2d({tensor_info(x), tensor_info(weight), tensor_info(bias), std::nullopt, stride, padding,
                                  dilation, groups, lo, hi});
  p.tf32 = tf32, p.pool = {pool.at(0), pool.at(1), pool.at(2)};
  if (p.N == 0 || !Backend::has(x) || !is_pooling(p) || !Backend::pools(p, x)) {
    const Tensor y =
        launch_conv2d<Backend>(x, weight, bias, std::nullopt, stride, padding, dilation, groups, lo, hi, tf32);
    return torch::stable::contiguous(aten::max_pool2d(y, p.pool), output_format(x));
  }
  const Tensor x_last = channels_last(x), weight_dense = laid_out<Backend>(weight, p);
  const OptionalTensor bias_dense = contiguous_bias(bias);
  Tensor y = empty_like_in(x, {p.N, p.K, p.pooled(p.P), p.pooled(p.Q)}, MemoryFormat::ChannelsLast);
  Backend::template run<Op::conv2d>(
      p,
      {x_last.const_data_ptr(), weight_dense.const_data_ptr(), data_or_null(bias_dense), nullptr, y.mutable_data_ptr()},
      x);
  return torch::stable::contiguous(y, output_format(x));
}

// What the backward of an empty batch is: zeros for the parameters.
inline Tensor zeros_for(const Tensor& like, const Ints& sizes, MemoryFormat format) {
  Tensor t = empty_like_in(like, sizes, format);
  return torch::stable::zero_(t);
}

template <class Backend>
aten::Gradients launch_conv2d_backward(const Tensor& grad, const OptionalTensor& y, const Tensor& x,
                                       const Tensor& weight, Ints stride, Ints padding, Ints dilation, int64_t groups,
                                       double lo, double hi, std::vector<bool> wanted, bool tf32) {
  const Conv2dInfo info{
      tensor_info(x), tensor_info(weight), std::nullopt, std::nullopt, stride, padding, dilation, groups, lo, hi};
  Conv2dProblem p = check_conv2d(info);
  p.tf32 = tf32;
  check_conv2d_backward(info, p, tensor_info(grad), tensor_info(y));
  const MemoryFormat x_format = output_format(x), weight_format = output_format(weight);
  const Ints out_sizes = {p.N, p.K, p.P, p.Q}, weight_sizes = {p.K, p.group_c(), p.R, p.S};
  if (p.N > 0 && !(Backend::has(x) && Backend::covers(p)))
    return aten::conv2d_backward(grad, y, x, weight, info, wanted);

  Tensor dx = absent_like(x), dw = absent_like(x), dbias = absent_like(x), dresidual = absent_like(x);
  if (p.N == 0) {
    if (wanted[0]) dx = empty_like_in(x, {p.N, p.C, p.H, p.W}, x_format);
    if (wanted[1]) dw = zeros_for(x, weight_sizes, weight_format);
    if (wanted[2]) dbias = zeros_for(x, {p.K}, MemoryFormat::Contiguous);
    if (wanted[3]) dresidual = empty_like_in(x, out_sizes, x_format);
    return {dx, dw, dbias, dresidual};
  }

  // The activation's mask, the sum for the bias and the residual's gradient come from one pass over grad and y; but
  // where nobody wants the masked gradient itself, the kernels may do without.
  Tensor masked = channels_last(grad);
  const OptionalTensor y_last = p.clamp.active() ? channels_last(y) : std::nullopt;
  if (wanted[2]) dbias = empty_like_in(x, {p.K}, MemoryFormat::Contiguous);
  const bool in_kernels = !wanted[3] && (wanted[1] || !wanted[2]) && Backend::masks_gradient(p, wanted, x);
  if (!in_kernels && (p.clamp.active() || wanted[2] || wanted[3])) {
    const bool write = p.clamp.active() || wanted[3];
    Tensor written = write ? empty_like_in(x, out_sizes, MemoryFormat::ChannelsLast) : masked;
    Backend::template run<Op::bias_relu_backward>(
        {p.N * p.P * p.Q, p.K, 1, p.dtype, p.clamp},
        {masked.const_data_ptr(), data_or_null(y_last), write ? written.mutable_data_ptr() : nullptr,
         wanted[2] ? dbias.mutable_data_ptr() : nullptr},
        x);
    masked = written;
  }
  if (wanted[3]) dresidual = torch::stable::contiguous(masked, x_format);
  const void* const seen = in_kernels ? data_or_null(y_last) : nullptr;
  const Tensor weight_dense = laid_out<Backend>(weight, p);
  if (wanted[0]) {
    dx = empty_like_in(x, {p.N, p.C, p.H, p.W}, MemoryFormat::ChannelsLast);
    Backend::template run<Op::conv2d_dgrad>(
        p, {masked.const_data_ptr(), weight_dense.const_data_ptr(), seen, dx.mutable_data_ptr()}, x);
    dx = torch::stable::contiguous(dx, x_format);
  }
  if (wanted[1]) {
    const Tensor x_last = channels_last(x);
    dw = empty_like_in(x, weight_sizes, p.kcrs ? MemoryFormat::Contiguous : MemoryFormat::ChannelsLast);
    Backend::template run<Op::conv2d_wgrad>(
        p,
        {masked.const_data_ptr(), x_last.const_data_ptr(), seen, dw.mutable_data_ptr(),
         in_kernels && wanted[2] ? dbias.mutable_data_ptr() : nullptr},
        x);
    dw = torch::stable::contiguous(dw, weight_format);
  }
  return {dx, dw, dbias, dresidual};
}

template <class Backend>
Tensor launch_bias_relu(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual, double lo,
                        double hi) {
  check_bias_relu(tensor_info(x), tensor_info(bias), tensor_info(residual), lo, hi);
  const MemoryFormat format = output_format(x);
  const auto sizes = x.sizes();
  Tensor y = empty_like_in(x, {sizes.begin(), sizes.end()}, format);
  if (x.numel() == 0) return y;
  if (!Backend::has(x)) return aten::bias_relu(x, bias, residual, {lo, hi});

  const Tensor x_dense = torch::stable::contiguous(x, format);
  const OptionalTensor bias_dense = contiguous_bias(bias);
  const OptionalTensor residual_dense =
      residual ? OptionalTensor(torch::stable::contiguous(*residual, format)) : std::nullopt;
  Backend::template run<Op::bias_relu>(
      bias_relu_problem(x, format, lo, hi),
      {x_dense.const_data_ptr(), data_or_null(bias_dense), data_or_null(residual_dense), y.mutable_data_ptr()}, x);
  return y;
}

template <class Backend>
std::tuple<Tensor, Tensor> launch_bias_relu_backward(const Tensor& grad, const OptionalTensor& y, double lo, double hi,
                                                     bool bias_wanted) {
  check_bias_relu_backward(tensor_info(grad), tensor_info(y), lo, hi);
  const auto sizes = grad.sizes();
  const MemoryFormat format = output_format(y ? *y : grad);
  if (grad.numel() > 0 && !Backend::has(grad)) return aten::bias_relu_backward(grad, y, {lo, hi}, bias_wanted);
  Tensor dx = empty_like_in(grad, {sizes.begin(), sizes.end()}, format);
  if (grad.numel() == 0)
    return {dx, bias_wanted ? zeros_for(grad, {sizes[1]}, MemoryFormat::Contiguous) : absent_like(grad)};

  Tensor dbias = bias_wanted ? empty_like_in(grad, {sizes[1]}, MemoryFormat::Contiguous) : absent_like(grad);
  const Tensor grad_dense = torch::stable::contiguous(grad, format);
  const BiasReluProblem p = bias_relu_problem(grad, format, lo, hi);
  const OptionalTensor y_dense =
      p.clamp.active() ? OptionalTensor(torch::stable::contiguous(*y, format)) : std::nullopt;
  Backend::template run<Op::bias_relu_backward>(
      p,
      {grad_dense.const_data_ptr(), data_or_null(y_dense), dx.mutable_data_ptr(),
       bias_wanted ? dbias.mutable_data_ptr() : nullptr},
      grad);
  return {dx, dbias};
}

// Registers every operator's implementation for the library's dispatch key.
template <class Backend>
void register_all(torch::stable::detail::StableLibrary& m) {
  m.impl("conv2d", TORCH_BOX(&launch_conv2d<Backend>));
  m.impl("conv2d_pool", TORCH_BOX(&launch_conv2d_pool<Backend>));
  m.impl("conv2d_backward", TORCH_BOX(&launch_conv2d_backward<Backend>));
  m.impl("bias_relu", TORCH_BOX(&launch_bias_relu<Backend>));
  m.impl("bias_relu_backward", TORCH_BOX(&launch_bias_relu_backward<Backend>));
}

}  // namespace pyserve
