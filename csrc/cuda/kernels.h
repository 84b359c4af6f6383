// The CUDA kernels of the variant list, declared, and the choice among them. Free of torch and of CUDA's headers.
#pragma once
#include "../registry.h"
#include "queue.h"

namespace pyserve {

// The kernel of a row is `<operator>_<algorithm>_<architecture>`; it lives in <operator>_<algorithm>.cuh.
#define ROW(op, algorithm, architecture, covers, least, also) \
  void op##_##algorithm##_##architecture(const ProblemOf<Op::op>&, const ArgsOf<Op::op>&, const Queue&);
PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW

template <Op op>
struct CudaChoice {
  Variant variant;
  void (*run)(const ProblemOf<op>&, const ArgsOf<op>&, const Queue&);
};

// What the row of a variant says; nothing of one of the CPU.
constexpr Also also_done_by(Variant variant) {
#define ROW(op, algorithm, architecture, covers, least, also) \
  if (variant == Variant::op##_##algorithm##_##architecture) return Also::also;
  PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
  return Also::nothing;
}

// The first variant of the list that a device of this compute capability (× 10) can run and that covers the problem, or
// the preferred one.
template <Op op>
CudaChoice<op> choose_cuda(const ProblemOf<op>& problem, int32_t capability) {
  CudaChoice<op> choice{Variant::count, nullptr};
#define ROW(row_op, algorithm, architecture, covers, least, also)                                                   \
  if constexpr (Op::row_op == op) {                                                                                 \
    constexpr Variant variant = Variant::row_op##_##algorithm##_##architecture;                                     \
    const bool first = choice.run == nullptr || static_cast<int32_t>(variant) == preferred_variant();               \
    if (first && capability >= least && covers(problem)) choice = {variant, row_op##_##algorithm##_##architecture}; \
  }
  PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
  return choice;
}

}  // namespace pyserve
