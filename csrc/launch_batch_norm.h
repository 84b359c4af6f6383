// batch_norm_relu, whatever the device: see launch.h. There is no detour by ATen here: the Python wrapper takes
// PyTorch's own operators where a device has no kernels.
#pragma once
#include "launch.h"

namespace pyserve {

inline BatchNormProblem batch_norm_problem(const Tensor& x, bool training, double eps, double lo, double hi) {
  const DType dtype = kernel_dtype(dtype_name(x.scalar_type())).value_or(DType::f32);
  return {x.numel() / x.size(1), x.size(1), dtype, training, eps, {lo, hi}};
}

// A 2-D tensor is dense channels-last as it is.
inline MemoryFormat rows_format(const Tensor& x) {
  return x.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline OptionalTensor in_rows(const OptionalTensor& t) {
  return t ? OptionalTensor(torch::stable::contiguous(*t, rows_format(*t))) : std::nullopt;
}

// Statistics, as weight and bias, are float64 beside float64.
inline Tensor statistics_of(const Tensor& x, int64_t channels) {
  const ScalarType type = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty(Ints{channels}, type, std::nullopt, x.device());
}

inline Tensor statistics_like(const Tensor& x, bool wanted) { return statistics_of(x, wanted ? x.size(1) : 0); }

template <class Backend>
void check_batch_norm_kernel(const Tensor& x) {
  if (!Backend::has(x))
    throw InvalidArgument("batch_norm_relu: there is no kernel for x of " + dtype_name(x.scalar_type()) + " here");
}

// Without mean and var the statistics are this batch's, and come back; else what comes back is empty. x is not.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor> launch_batch_norm_relu(const Tensor& x, const OptionalTensor& weight,
                                                          const OptionalTensor& bias, const OptionalTensor& residual,
                                                          const OptionalTensor& mean, const OptionalTensor& var,
                                                          double eps, double lo, double hi, bool /*of_batch*/) {
  check_batch_norm_relu({tensor_info(x), tensor_info(weight), tensor_info(bias), tensor_info(residual),
                         tensor_info(mean), tensor_info(var), eps, lo, hi});
  check_batch_norm_kernel<Backend>(x);
  const MemoryFormat format = output_format(x);
  const auto sizes = x.sizes();
  const bool training = !mean.has_value();
  Tensor y = empty_like_in(x, {sizes.begin(), sizes.end()}, rows_format(x));
  Tensor batch_mean = statistics_like(x, training), batch_var = statistics_like(x, training);
  if (x.numel() == 0) return {torch::stable::contiguous(y, format), batch_mean, batch_var};
  const OptionalTensor x_rows = in_rows(x), residual_rows = in_rows(residual);
  const OptionalTensor weight_dense = contiguous_bias(weight), bias_dense = contiguous_bias(bias);
  const OptionalTensor mean_dense = contiguous_bias(mean), var_dense = contiguous_bias(var);
  Backend::template run<Op::batch_norm_relu>(
      batch_norm_problem(x, training, eps, lo, hi),
      {x_rows->const_data_ptr(), data_or_null(weight_dense), data_or_null(bias_dense), data_or_null(residual_rows),
       y.mutable_data_ptr(), training ? batch_mean.mutable_data_ptr() : const_cast<void*>(mean_dense->const_data_ptr()),
       training ? batch_var.mutable_data_ptr() : const_cast<void*>(var_dense->const_data_ptr())},
      x);
  return {torch::stable::contiguous(y, format), batch_mean, batch_var};
}

// Of devices that have kernels alone: who has none needs no statistics ahead of the BatchNorm.
template <class Backend>
std::tuple<Tensor, Tensor, Tensor> launch_conv2d_statistics(const Tensor& x, const Tensor& weight,
                                                            const OptionalTensor& bias, Ints stride, Ints padding,
                                                            Ints dilation, int64_t groups, bool tf32) {
  Conv2dProblem p = check_conv2d({tensor_info(x), tensor_info(weight), tensor_info(bias), std::nullopt, stride, padding,
                                  dilation, groups, -INFINITY, INFINITY});
  p.tf32 = tf32;
  if (!Backend::has(x) || !Backend::covers(p))
    throw InvalidArgument("conv2d_statistics: there is no kernel for x of " + dtype_name(x.scalar_type()) + " here");
  const MemoryFormat format = output_format(x);
  Tensor y = empty_like_in(x, {p.N, p.K, p.P, p.Q}, MemoryFormat::ChannelsLast);
  Tensor mean = statistics_of(x, p.K), var = statistics_of(x, p.K);
  if (p.N == 0) return {torch::stable::contiguous(y, format), torch::stable::zero_(mean), torch::stable::zero_(var)};
  const Tensor x_last = channels_last(x), weight_dense = laid_out<Backend>(weight, p);
  const OptionalTensor bias_dense = contiguous_bias(bias);
  Conv2dArgs args{x_last.const_data_ptr(), weight_dense.const_data_ptr(), data_or_null(bias_dense), nullptr,
                  y.mutable_data_ptr()};
  const bool in_kernel = Backend::gives_statistics(p, x);
  if (in_kernel) {
    args.mean = static_cast<float*>(mean.mutable_data_ptr());
    args.var = static_cast<float*>(var.mutable_data_ptr());
  }
  Backend::template run<Op::conv2d>(p, args, x);
  if (!in_kernel)
    Backend::template run<Op::batch_norm_relu>(
        batch_norm_problem(y, true, 0, -INFINITY, INFINITY),
        {y.const_data_ptr(), nullptr, nullptr, nullptr, nullptr, mean.mutable_data_ptr(), var.mutable_data_ptr()}, x);
  return {torch::stable::contiguous(y, format), mean, var};
}

template <class Backend>
aten::Gradients launch_batch_norm_relu_backward(const Tensor& grad, const OptionalTensor& y, const Tensor& x,
                                                const OptionalTensor& weight, const OptionalTensor& bias,
                                                const Tensor& mean, const Tensor& var, bool training, double eps,
                                                double lo, double hi, std::vector<bool> wanted) {
  const BatchNormInfo info{tensor_info(x),
                           tensor_info(weight),
                           tensor_info(bias),
                           std::nullopt,
                           tensor_info(mean),
                           tensor_info(var),
                           eps,
                           lo,
                           hi};
  check_batch_norm_relu(info);
  check_batch_norm_relu_backward(info, tensor_info(grad), tensor_info(y));
  check_batch_norm_kernel<Backend>(x);
  const MemoryFormat format = output_format(x);
  const auto sizes = x.sizes();
  const auto like_x = [&](bool needed) {
    return needed ? empty_like_in(x, {sizes.begin(), sizes.end()}, rows_format(x)) : absent_like(x);
  };
  Tensor dx = like_x(wanted[0]), dresidual = like_x(wanted[3]);
  Tensor dweight = statistics_like(x, wanted[1]), dbias = statistics_like(x, wanted[2]);
  if (x.numel() == 0) return {dx, torch::stable::zero_(dweight), torch::stable::zero_(dbias), dresidual};
  const OptionalTensor grad_rows = in_rows(grad), y_rows = in_rows(y), x_rows = in_rows(x);
  const OptionalTensor weight_dense = contiguous_bias(weight), bias_dense = contiguous_bias(bias);
  const Tensor mean_dense = torch::stable::contiguous(mean), var_dense = torch::stable::contiguous(var);
  const auto out = [&](Tensor& t, int i) { return wanted[static_cast<size_t>(i)] ? t.mutable_data_ptr() : nullptr; };
  Backend::template run<Op::batch_norm_relu_backward>(
      batch_norm_problem(x, training, eps, lo, hi),
      {grad_rows->const_data_ptr(), data_or_null(y_rows), x_rows->const_data_ptr(), data_or_null(weight_dense),
       data_or_null(bias_dense), mean_dense.const_data_ptr(), var_dense.const_data_ptr(), out(dx, 0), out(dweight, 1),
       out(dbias, 2), out(dresidual, 3)},
      x);
  return {wanted[0] ? torch::stable::contiguous(dx, format) : dx, dweight, dbias,
          wanted[3] ? torch::stable::contiguous(dresidual, format) : dresidual};
}

}  // namespace pyserve
