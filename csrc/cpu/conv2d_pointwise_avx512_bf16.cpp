// 1×1 convolution of bfloat16 for AVX512-BF16.
#include "vec_avx512.h"
//
#include "conv2d_pairs.h"

namespace pyserve {

const Packing conv2d_pointwise_avx512_bf16_packing{pairs_layout, pairs_packed_size, pairs_pack};

void conv2d_pointwise_avx512_bf16(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const Product m = pairs_product(p);
  run_pointwise(m, words(args.x), packed_pairs(p, m, args, pool), pairs_epilogue(p, m, args, pool), pool);
}

}  // namespace pyserve
