// Depthwise convolution and its gradients for AVX-512.
#include "vec_avx512.h"
//
#include "conv2d_depthwise.h"

namespace pyserve {

const Packing conv2d_depthwise_avx512_packing{direct_layout, depthwise_packed_size, depthwise_pack};

void conv2d_depthwise_avx512(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? depthwise_forward<float>(p, args, pool) : depthwise_forward<Bf16>(p, args, pool);
}

void conv2d_dgrad_depthwise_avx512(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? depthwise_dgrad<float>(p, args, pool) : depthwise_dgrad<Bf16>(p, args, pool);
}

void conv2d_wgrad_depthwise_avx512(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? depthwise_wgrad<float>(p, args, pool) : depthwise_wgrad<Bf16>(p, args, pool);
}

}  // namespace pyserve
