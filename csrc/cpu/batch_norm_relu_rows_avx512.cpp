// BatchNorm with residual and activation, and its backward, for AVX-512.
#include "vec_avx512.h"
//
#include "batch_norm_relu_rows.h"

namespace pyserve {

void batch_norm_relu_rows_avx512(const BatchNormProblem& p, const BatchNormReluArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? norm_forward<float>(p, args, pool) : norm_forward<Bf16>(p, args, pool);
}

void batch_norm_relu_backward_rows_avx512(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args,
                                          const Pool& pool) {
  p.dtype == DType::f32 ? norm_backward<float>(p, args, pool) : norm_backward<Bf16>(p, args, pool);
}

}  // namespace pyserve
