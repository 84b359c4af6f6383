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

// Whether a gradient's kernel applies the activation's mask to grad as it loads it, and sums it for the bias.
constexpr bool masks_gradient(Variant variant) {
  return variant == Variant::conv2d_dgrad_mma_sm80 || variant == Variant::conv2d_dgrad_pointwise_sm80 ||
         variant == Variant::conv2d_wgrad_mma_sm80 || variant == Variant::conv2d_wgrad_pointwise_sm80;
}

// Whether a convolution's kernel gives the statistics of its output's channels.
constexpr bool gives_statistics(Variant variant) {
  return variant == Variant::conv2d_mma_sm80 || variant == Variant::conv2d_pointwise_sm80;
}

// The first variant of the list that a device of this compute capability (× 10) can run and that covers the problem, or
// the preferred one.
template <Op op>
CudaChoice<op> choose_cuda(const ProblemOf<op>& problem, int32_t capability) {
  CudaChoice<op> choice{Variant::count, nullptr};
#define ROW(row_op, algorithm, architecture, covers, least)                                                         \
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
