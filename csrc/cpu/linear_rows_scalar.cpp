// The meaning of the fully connected layer: plain loops, sums in float64.
#include "../variants.h"
#include "element.h"

namespace pyserve {
namespace {

template <class T>
void linear(const LinearProblem& p, const LinearArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  T* y = static_cast<T*>(args.y);
  pool(p.N * p.K, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / p.K, k = i % p.K;
      double sum = bias ? widen(bias[k]) : 0.0;
      for (int64_t c = 0; c < p.C; ++c) sum += widen(x[n * p.C + c]) * widen(weight[k * p.C + c]);
      y[i] = narrow<T>(clamp(sum, p.clamp.lo, p.clamp.hi));
    }
  });
}

}  // namespace

void linear_rows_scalar(const LinearProblem& p, const LinearArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return linear<float>(p, args, pool);
  if (p.dtype == DType::bf16) return linear<BFloat16>(p, args, pool);
  linear<double>(p, args, pool);
}

}  // namespace pyserve
