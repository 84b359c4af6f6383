// The meaning of BatchNorm with residual and activation, and of its backward: plain loops, sums in float64.
#include <cmath>
#include <vector>

#include "../variants.h"
#include "element.h"

namespace pyserve {
namespace {

template <class T, class P>
void forward(const BatchNormProblem& p, const BatchNormReluArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *residual = static_cast<const T*>(args.residual);
  const P *weight = static_cast<const P*>(args.weight), *bias = static_cast<const P*>(args.bias);
  P *mean = static_cast<P*>(args.mean), *var = static_cast<P*>(args.var);
  T* y = static_cast<T*>(args.y);
  pool(p.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      if (p.training) {
        double sum = 0, squares = 0;
        for (int64_t r = 0; r < p.rows; ++r) sum += widen(x[r * p.channels + c]);
        const double center = sum / static_cast<double>(p.rows);
        for (int64_t r = 0; r < p.rows; ++r) {
          const double d = widen(x[r * p.channels + c]) - center;
          squares += d * d;
        }
        mean[c] = static_cast<P>(center), var[c] = static_cast<P>(squares / static_cast<double>(p.rows));
      }
      if (y == nullptr) continue;
      const double scale = (weight ? weight[c] : 1) / std::sqrt(var[c] + p.eps);
      for (int64_t i = c; i < p.numel(); i += p.channels) {
        double v = (widen(x[i]) - mean[c]) * scale + (bias ? bias[c] : 0);
        if (residual) v += widen(residual[i]);
        y[i] = narrow<T>(clamp(v, p.clamp.lo, p.clamp.hi));
      }
    }
  });
}

template <class T, class P>
void backward(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args, const Pool& pool) {
  const T *grad = static_cast<const T*>(args.grad), *y = static_cast<const T*>(args.y);
  const T* x = static_cast<const T*>(args.x);
  const P *weight = static_cast<const P*>(args.weight), *bias = static_cast<const P*>(args.bias);
  const P *mean = static_cast<const P*>(args.mean), *var = static_cast<const P*>(args.var);
  T *dx = static_cast<T*>(args.dx), *dresidual = static_cast<T*>(args.dresidual);
  pool(p.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const double inverse = 1 / std::sqrt(var[c] + p.eps), scale = (weight ? weight[c] : 1) * inverse;
      const auto masked = [&](int64_t i) {
        const double out = y ? widen(y[i]) : (widen(x[i]) - mean[c]) * scale + (bias ? bias[c] : 0);
        return p.clamp.active() && blocked(out, p.clamp.mask_lo(), p.clamp.mask_hi()) ? 0.0 : widen(grad[i]);
      };
      double sum = 0, with_x = 0;
      for (int64_t i = c; i < p.numel(); i += p.channels) {
        const double g = masked(i);
        sum += g, with_x += g * (widen(x[i]) - mean[c]) * inverse;
        if (dresidual) dresidual[i] = narrow<T>(g);
      }
      if (args.dbias) static_cast<P*>(args.dbias)[c] = static_cast<P>(sum);
      if (args.dweight) static_cast<P*>(args.dweight)[c] = static_cast<P>(with_x);
      const double rows = static_cast<double>(p.rows);
      for (int64_t i = c; dx && i < p.numel(); i += p.channels) {
        const double from_statistics = (sum + (widen(x[i]) - mean[c]) * inverse * with_x) / rows;
        dx[i] = narrow<T>((masked(i) - (p.training ? from_statistics : 0)) * scale);
      }
    }
  });
}

}  // namespace

void batch_norm_relu_rows_scalar(const BatchNormProblem& p, const BatchNormReluArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return forward<float, float>(p, args, pool);
  if (p.dtype == DType::bf16) return forward<BFloat16, float>(p, args, pool);
  forward<double, double>(p, args, pool);
}

void batch_norm_relu_backward_rows_scalar(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args,
                                          const Pool& pool) {
  if (p.dtype == DType::f32) return backward<float, float>(p, args, pool);
  if (p.dtype == DType::bf16) return backward<BFloat16, float>(p, args, pool);
  backward<double, double>(p, args, pool);
}

}  // namespace pyserve
