// Direct convolution of few input channels and its weight gradient for AVX2.
#include "vec_avx2.h"
//
#include "conv2d_shallow.h"
#include "conv2d_shallow_wgrad.h"

namespace pyserve {

const Packing conv2d_shallow_avx2_packing{shallow_layout, shallow_packed_size, shallow_pack};

void conv2d_shallow_avx2(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? shallow_forward<float>(p, args, pool) : shallow_forward<Bf16>(p, args, pool);
}

void conv2d_wgrad_shallow_avx2(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? shallow_wgrad<float>(p, args, pool) : shallow_wgrad<Bf16>(p, args, pool);
}

}  // namespace pyserve
