// The fully connected layer for AVX2.
#include "vec_avx2.h"
//
#include "linear_rows.h"

namespace pyserve {

void linear_rows_avx2(const LinearProblem& p, const LinearArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? linear<float>(p, args, pool) : linear<Bf16>(p, args, pool);
}

}  // namespace pyserve
