// Winograd convolution with stride 1, and its gradients, for AVX2.
#include "vec_avx2.h"
//
#include "conv2d_winograd.h"
#include "conv2d_winograd_wgrad.h"

namespace pyserve {

const Packing conv2d_winograd_avx2_packing{winograd_layout<StrideOne>, winograd_packed_size<StrideOne>,
                                           winograd_pack<StrideOne>};

void conv2d_winograd_avx2(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  if (winograd_forward<StrideOne>(p, args, pool)) return;
  count_call(Variant::conv2d_direct_avx2);
  conv2d_direct_avx2(p, args.without_packed(), pool);
}

void conv2d_dgrad_winograd_avx2(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32 ? winograd_dgrad<float>(p, args, pool) : winograd_dgrad<Bf16>(p, args, pool)) return;
  count_call(Variant::conv2d_dgrad_direct_avx2);
  conv2d_dgrad_direct_avx2(p, args, pool);
}

void conv2d_wgrad_winograd_avx2(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  if (winograd_wgrad<StrideOne>(p, args, pool)) return;
  count_call(Variant::conv2d_wgrad_direct_avx2);
  conv2d_wgrad_direct_avx2(p, args, pool);
}

}  // namespace pyserve
