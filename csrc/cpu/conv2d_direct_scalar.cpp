// The meaning of the convolution and its gradients: plain loops, sums in float64, rounded once at the end.
#include <vector>

#include "../variants.h"
#include "element.h"

namespace pyserve {
namespace {

// The input row (or column) that output position `out` reads through tap `tap`, or -1 in the padding.
int64_t source(int64_t out, int64_t tap, int64_t stride, int64_t pad, int64_t dilation, int64_t size) {
  const int64_t at = out * stride - pad + tap * dilation;
  return at >= 0 && at < size ? at : -1;
}

template <class T>
double dot(const T* a, const T* b, int64_t n, int64_t b_step) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += widen(a[i]) * widen(b[i * b_step]);
  return sum;
}

// Where the weights of filter k at tap (r, s) begin; from channel to channel it is weight_by_c().
int64_t weight_at(const Conv2dProblem& p, int64_t k, int64_t r, int64_t s) {
  return k * p.R * p.S * p.group_c() + (r * p.S + s) * p.weight_by_tap();
}

template <class T>
void forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
  const T *bias = static_cast<const T*>(args.bias), *residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  const int64_t C = p.group_c();
  const auto sum_at = [&](int64_t n, int64_t P, int64_t Q, int64_t k) {
    const int64_t c0 = k / p.group_k() * C;
    double sum = 0;
    for (int64_t r = 0; r < p.R; ++r) {
      const int64_t h = source(P, r, p.stride_h, p.pad_h, p.dilation_h, p.H);
      for (int64_t s = 0; h >= 0 && s < p.S; ++s) {
        const int64_t w = source(Q, s, p.stride_w, p.pad_w, p.dilation_w, p.W);
        if (w >= 0)
          sum += dot(x + ((n * p.H + h) * p.W + w) * p.C + c0, weight + weight_at(p, k, r, s), C, p.weight_by_c());
      }
    }
    return sum;
  };
  pool(p.N * p.P, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t q = 0; q < p.Q; ++q)
        for (int64_t k = 0; k < p.K; ++k) {
          const int64_t out = (row * p.Q + q) * p.K + k;
          double v = sum_at(row / p.P, row % p.P, q, k);
          if (bias) v += widen(bias[k]);
          if (residual) v += widen(residual[out]);
          y[out] = narrow<T>(clamp(v, p.clamp.lo, p.clamp.hi));
        }
  });
}

template <class T>
void dgrad(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  const T *grad = static_cast<const T*>(args.grad), *weight = static_cast<const T*>(args.weight);
  T* dx = static_cast<T*>(args.dx);
  const int64_t C = p.group_c(), K = p.group_k();
  // One image per task: within it every output position hands its gradient back to what it read.
  pool(p.N, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(p.H * p.W * p.C));
    for (int64_t n = begin; n < end; ++n) {
      sums.assign(sums.size(), 0.0);
      for (int64_t P = 0; P < p.P; ++P)
        for (int64_t r = 0; r < p.R; ++r) {
          const int64_t h = source(P, r, p.stride_h, p.pad_h, p.dilation_h, p.H);
          for (int64_t Q = 0; h >= 0 && Q < p.Q; ++Q)
            for (int64_t s = 0; s < p.S; ++s) {
              const int64_t w = source(Q, s, p.stride_w, p.pad_w, p.dilation_w, p.W);
              for (int64_t k = 0; w >= 0 && k < p.K; ++k) {
                const double g = widen(grad[((n * p.P + P) * p.Q + Q) * p.K + k]);
                const T* from = weight + weight_at(p, k, r, s);
                double* to = sums.data() + (h * p.W + w) * p.C + k / K * C;
                for (int64_t c = 0; c < C; ++c) to[c] += g * widen(from[c * p.weight_by_c()]);
              }
            }
        }
      T* image = dx + n * p.H * p.W * p.C;
      for (size_t i = 0; i < sums.size(); ++i) image[i] = narrow<T>(sums[i]);
    }
  });
}

template <class T>
void wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  const T *grad = static_cast<const T*>(args.grad), *x = static_cast<const T*>(args.x);
  T* dw = static_cast<T*>(args.dw);
  const int64_t C = p.group_c();
  // One filter tap per task: its sum over all images has one fixed order.
  pool(p.K * p.R * p.S, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(static_cast<size_t>(C));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = i / (p.R * p.S), r = i / p.S % p.R, s = i % p.S, c0 = k / p.group_k() * C;
      sums.assign(sums.size(), 0.0);
      for (int64_t row = 0; row < p.N * p.P; ++row) {
        const int64_t h = source(row % p.P, r, p.stride_h, p.pad_h, p.dilation_h, p.H);
        for (int64_t q = 0; h >= 0 && q < p.Q; ++q) {
          const int64_t w = source(q, s, p.stride_w, p.pad_w, p.dilation_w, p.W);
          if (w < 0) continue;
          const double g = widen(grad[(row * p.Q + q) * p.K + k]);
          const T* from = x + ((row / p.P * p.H + h) * p.W + w) * p.C + c0;
          for (int64_t c = 0; c < C; ++c) sums[static_cast<size_t>(c)] += g * widen(from[c]);
        }
      }
      for (int64_t c = 0; c < C; ++c)
        dw[weight_at(p, k, r, s) + c * p.weight_by_c()] = narrow<T>(sums[static_cast<size_t>(c)]);
    }
  });
}

}  // namespace

void conv2d_direct_scalar(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return forward<float>(p, args, pool);
  if (p.dtype == DType::bf16) return forward<BFloat16>(p, args, pool);
  forward<double>(p, args, pool);
}

void conv2d_dgrad_direct_scalar(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return dgrad<float>(p, args, pool);
  if (p.dtype == DType::bf16) return dgrad<BFloat16>(p, args, pool);
  dgrad<double>(p, args, pool);
}

void conv2d_wgrad_direct_scalar(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return wgrad<float>(p, args, pool);
  if (p.dtype == DType::bf16) return wgrad<BFloat16>(p, args, pool);
  wgrad<double>(p, args, pool);
}

}  // namespace pyserve
