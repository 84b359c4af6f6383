// The fully connected layer for AVX-512.
#include "vec_avx512.h"
//
#include "linear_rows.h"

namespace pyserve {

void linear_rows_avx512(const LinearProblem& p, const LinearArgs& args, const Pool& pool) {
  p.dtype == DType::f32 ? linear<float>(p, args, pool) : linear<Bf16>(p, args, pool);
}

}  // namespace pyserve
