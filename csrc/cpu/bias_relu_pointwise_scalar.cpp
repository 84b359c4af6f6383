// The meaning of the fused bias + residual + clamp, and of its backward.
#include <vector>

#include "../variants.h"
#include "element.h"

namespace pyserve {
namespace {

template <class T>
void forward(const BiasReluProblem& p, const BiasReluArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *bias = static_cast<const T*>(args.bias);
  const T* residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  pool(p.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double v = widen(x[i]);
      if (bias) v += widen(bias[i / p.inner % p.channels]);
      if (residual) v += widen(residual[i]);
      y[i] = narrow<T>(clamp(v, p.clamp.lo, p.clamp.hi));
    }
  });
}

template <class T>
void backward(const BiasReluProblem& p, const BiasReluBackwardArgs& args, const Pool& pool) {
  const T *grad = static_cast<const T*>(args.grad), *y = static_cast<const T*>(args.y);
  T *dx = static_cast<T*>(args.dx), *dbias = static_cast<T*>(args.dbias);
  const double lo = p.clamp.mask_lo(), hi = p.clamp.mask_hi();
  // One channel per task: its sum has one fixed order.
  pool(p.channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0;
      for (int64_t outer = 0; outer < p.outer; ++outer)
        for (int64_t i = (outer * p.channels + c) * p.inner; i < (outer * p.channels + c + 1) * p.inner; ++i) {
          const double g = y && blocked(widen(y[i]), lo, hi) ? 0.0 : widen(grad[i]);
          sum += g;
          if (dx) dx[i] = narrow<T>(g);
        }
      if (dbias) dbias[c] = narrow<T>(sum);
    }
  });
}

}  // namespace

void bias_relu_pointwise_scalar(const BiasReluProblem& p, const BiasReluArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return forward<float>(p, args, pool);
  if (p.dtype == DType::bf16) return forward<BFloat16>(p, args, pool);
  forward<double>(p, args, pool);
}

void bias_relu_backward_pointwise_scalar(const BiasReluProblem& p, const BiasReluBackwardArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return backward<float>(p, args, pool);
  if (p.dtype == DType::bf16) return backward<BFloat16>(p, args, pool);
  backward<double>(p, args, pool);
}

}  // namespace pyserve
