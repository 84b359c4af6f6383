// The CUDA kernels of the variant list, declared, and the choice among them. Free of torch and of CUDA's headers.
#pragma once
#include "../registry.h"
#include "queue.h"

namespace pyserve {

// The kernel of a row is `<operator>_<algorithm>_<architecture>`; it lives in <operator>_<algorithm>.cuh.
#define ROW(op, algorithm, architecture, covers, least) \
  void op##_##algorithm##_##architecture(const ProblemOf<Op::op>&, const ArgsOf<Op::op>&, const Queue&);
PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW

template <Op op>
struct CudaChoice {
  Variant variant;
  void (*run)(const ProblemOf<op>&, const ArgsOf<op>&, const Queue&);
};

// The first variant of the list that this device can run and that covers the problem, or the preferred one.
template <Op op>
CudaChoice<op> choose_cuda(const ProblemOf<op>& problem, const Queue& queue) {
  CudaChoice<op> choice{Variant::count, nullptr};
#define ROW(row_op, algorithm, architecture, covers, least)                                           \
  if constexpr (Op::row_op == op) {                                                                   \
    constexpr Variant variant = Variant::row_op##_##algorithm##_##architecture;                       \
    const bool first = choice.run == nullptr || static_cast<int32_t>(variant) == preferred_variant(); \
    if (first && queue.capability >= least && covers(problem))                                        \
      choice = {variant, row_op##_##algorithm##_##architecture};                                      \
  }
  PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
  return choice;
}

}  // namespace pyserve
