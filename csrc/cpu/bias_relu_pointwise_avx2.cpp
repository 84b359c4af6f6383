// The fused bias + residual + clamp and its backward for AVX2.
#include "vec_avx2.h"
//
#include "bias_relu_pointwise.h"

namespace pyserve {

void bias_relu_pointwise_avx2(const BiasReluProblem& p, const BiasReluArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? pointwise_forward<float>(p, args, pool) : pointwise_forward<Bf16>(p, args, pool);
}

void bias_relu_backward_pointwise_avx2(const BiasReluProblem& p, const BiasReluBackwardArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? pointwise_backward<float>(p, args, pool) : pointwise_backward<Bf16>(p, args, pool);
}

}  // namespace pyserve
