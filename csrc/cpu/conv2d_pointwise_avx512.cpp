// 1×1 convolution and its input gradient for AVX-512.
#include "vec_avx512.h"
//
#include "conv2d_pointwise.h"

namespace pyserve {

const Packing conv2d_pointwise_avx512_packing{direct_layout, direct_packed_size, direct_pack};

void conv2d_pointwise_avx512(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? pointwise_forward<float>(p, args, pool) : pointwise_forward<Bf16>(p, args, pool);
}

void conv2d_dgrad_pointwise_avx512(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? pointwise_dgrad<float>(p, args, pool) : pointwise_dgrad<Bf16>(p, args, pool);
}

}  // namespace pyserve
