// batch_norm_relu, whatever the device: see launch.h. There is no detour by ATen here: the Python wrapper takes
// PyTorch's own operators where a device has no kernels.
#pragma once
#include "registry.h"
#include "tensors.h"

namespace pyserve {

inline Tensor statistics_like(const Tensor& x, int64_t channels) {
  const ScalarType type = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty(std::vector<int64_t>{channels}, type, std::nullopt, x.device());
}

inline Tensor dense_channels_last(const Tensor& t) {
  return t.dim() == 4 ? channels_last(t) : torch::stable::contiguous(t);
}

// x as [rows][channels]: channels-last, or two dimensions.
inline BatchNormProblem batch_norm_problem(const Tensor& x, bool training, double eps, double lo, double hi) {
  return {x.size(1) == 0 ? 0 : x.numel() / x.size(1),
          x.size(1),
          kernel_dtype(dtype_name(x.scalar_type())).value_or(DType::f32),
          training,
          eps,
          {lo, hi}};
}

// What the operators take of x: four dimensions, or two, and something in it.
inline void check_kernel_sizes(const Tensor& x) {
  if ((x.dim() != 4 && x.dim() != 2) || x.numel() == 0)
    throw InvalidArgument("batch_norm_relu: expected x of 2 or 4 dimensions with at least one element");
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> launch_batch_norm_relu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                          const OptionalTensor& residual, const OptionalTensor& mean,
                                                          const OptionalTensor& inv_std, double eps, double lo,
                                                          double hi) {
  check_batch_norm_relu(tensor_info(x), tensor_info(weight), tensor_info(bias), tensor_info(residual),
                        tensor_info(mean), tensor_info(inv_std), lo, hi);
  check_kernel_sizes(x);
  const bool training = !mean.has_value();
  const MemoryFormat format = output_format(x);
  const auto sizes = x.sizes();
  const Tensor x_last = dense_channels_last(x);
  const OptionalTensor residual_last = residual ? OptionalTensor(dense_channels_last(*residual)) : std::nullopt;
  const Tensor weight_dense = torch::stable::contiguous(weight), bias_dense = torch::stable::contiguous(bias);
  Tensor found_mean = training ? statistics_like(x, x.size(1)) : torch::stable::contiguous(*mean);
  Tensor found_inv_std = training ? statistics_like(x, x.size(1)) : torch::stable::contiguous(*inv_std);
  Tensor y = empty_like_in(x, {sizes.begin(), sizes.end()},
                           x.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  Backend::template run<Op::batch_norm_relu>(
      batch_norm_problem(x, training, eps, lo, hi),
      {x_last.const_data_ptr(), weight_dense.const_data_ptr(), bias_dense.const_data_ptr(), data_or_null(residual_last),
       y.mutable_data_ptr(), found_mean.mutable_data_ptr(), found_inv_std.mutable_data_ptr()},
      x);
  y = torch::stable::contiguous(y, format);
  if (training) return {y, found_mean, found_inv_std};
  return {y, statistics_like(x, 0), statistics_like(x, 0)};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> launch_batch_norm_relu_backward(const Tensor& grad, const OptionalTensor& y,
                                                                           const Tensor& x, const Tensor& weight,
                                                                           const Tensor& mean, const Tensor& inv_std,
                                                                           bool training, double lo, double hi,
                                                                           bool residual_wanted) {
  check_batch_norm_relu_backward(tensor_info(grad), tensor_info(y), tensor_info(x), tensor_info(weight),
                                 tensor_info(mean), tensor_info(inv_std), lo, hi);
  check_kernel_sizes(x);
  const BatchNormProblem p = batch_norm_problem(x, training, 0, lo, hi);
  const MemoryFormat format = output_format(x);
  const MemoryFormat last = x.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const auto sizes = x.sizes();
  const Tensor grad_last = dense_channels_last(grad), x_last = dense_channels_last(x);
  const OptionalTensor y_last = p.clamp.active() ? OptionalTensor(dense_channels_last(*y)) : std::nullopt;
  const Tensor weight_dense = torch::stable::contiguous(weight);
  const Tensor mean_dense = torch::stable::contiguous(mean), inv_std_dense = torch::stable::contiguous(inv_std);
  Tensor dx = empty_like_in(x, {sizes.begin(), sizes.end()}, last);
  Tensor dresidual = residual_wanted ? empty_like_in(x, {sizes.begin(), sizes.end()}, last) : absent_like(x);
  Tensor dweight = statistics_like(x, p.channels), dbias = statistics_like(x, p.channels);
  Backend::template run<Op::batch_norm_relu_backward>(
      p,
      {grad_last.const_data_ptr(), data_or_null(y_last), x_last.const_data_ptr(), weight_dense.const_data_ptr(),
       mean_dense.const_data_ptr(), inv_std_dense.const_data_ptr(), dx.mutable_data_ptr(), dweight.mutable_data_ptr(),
       dbias.mutable_data_ptr(), residual_wanted ? dresidual.mutable_data_ptr() : nullptr},
      x);
  if (residual_wanted) dresidual = torch::stable::contiguous(dresidual, format);
  return {torch::stable::contiguous(dx, format), dweight, dbias, dresidual};
}

}  // namespace pyserve
