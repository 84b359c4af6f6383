// Direct convolution and its gradients for AVX-512.
#include "vec_avx512.h"
//
#include "conv2d_direct.h"
#include "conv2d_wgrad.h"

namespace pyserve {

const Packing conv2d_direct_avx512_packing{direct_layout, direct_packed_size, direct_pack};

void conv2d_direct_avx512(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? direct_forward<float>(p, args, pool) : direct_forward<Bf16>(p, args, pool);
}

void conv2d_dgrad_direct_avx512(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? direct_dgrad<float>(p, args, pool) : direct_dgrad<Bf16>(p, args, pool);
}

void conv2d_wgrad_direct_avx512(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? direct_wgrad<float>(p, args, pool) : direct_wgrad<Bf16>(p, args, pool);
}

}  // namespace pyserve
