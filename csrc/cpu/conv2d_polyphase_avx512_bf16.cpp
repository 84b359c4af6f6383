// Winograd's 3×3 convolution of bfloat16 with stride 2, and its weight gradient, for AVX512-BF16: transforms in
// float32, products of bfloat16 pairs.
#include "vec_avx512.h"
//
#include "conv2d_winograd.h"
#include "conv2d_winograd_wgrad.h"

namespace pyserve {

const Packing conv2d_polyphase_avx512_bf16_packing{winograd_layout<StrideTwo>, winograd_packed_size<StrideTwo>,
                                                   winograd_pack<StrideTwo>};

void conv2d_polyphase_avx512_bf16(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  if (winograd_forward<StrideTwo, Bf16>(p, args, pool)) return;
  count_call(Variant::conv2d_direct_avx512_bf16);
  conv2d_direct_avx512_bf16(p, args.without_packed(), pool);
}

void conv2d_wgrad_polyphase_avx512_bf16(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  if (winograd_wgrad<StrideTwo, Bf16>(p, args, pool)) return;
  count_call(Variant::conv2d_wgrad_direct_avx512);
  conv2d_wgrad_direct_avx512(p, args, pool);
}

}  // namespace pyserve
