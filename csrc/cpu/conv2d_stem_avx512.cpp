// Convolution of few input channels, with the max pooling that may follow, for AVX-512.
#include "vec_avx512.h"
//
#include "conv2d_stem.h"

namespace pyserve {

const Packing conv2d_stem_avx512_packing{stem_layout, stem_packed_size, stem_pack};

void conv2d_stem_avx512(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  if (stem_forward(p, args, pool)) return;
  count_call(Variant::conv2d_direct_avx512);
  if (p.pool.size == 0) return conv2d_direct_avx512(p, args.without_packed(), pool);
  // y holds the pooled output: the convolution's own goes through memory.
  Conv2dArgs whole = args.without_packed();
  whole.y = pool.allocate(pool.owner, p.N * p.P * p.Q * p.K * static_cast<int64_t>(sizeof(float)));
  conv2d_direct_avx512(p.without_pool(), whole, pool);
  count_call(Variant::max_pool2d_direct_avx512);
  max_pool2d_direct_avx512({p.N, p.P, p.Q, p.K, p.pooled(p.P), p.pooled(p.Q), p.pool.size, p.pool.size, p.pool.stride,
                            p.pool.stride, p.pool.pad, p.pool.pad, p.dtype},
                           {whole.y, args.y}, pool);
}

}  // namespace pyserve
