// Max pooling and adaptive average pooling for AVX-512.
#include "vec_avx512.h"
//
#include "pooling_direct.h"

namespace pyserve {

void max_pool2d_direct_avx512(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? max_pool<float>(p, args, pool) : max_pool<Bf16>(p, args, pool);
}

void average_pool2d_direct_avx512(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? average_pool<float>(p, args, pool) : average_pool<Bf16>(p, args, pool);
}

}  // namespace pyserve
