// The convolution on tensor cores: from the problem's element type to a kernel's template.
#include "conv2d_mma.cuh"
#include "kernels.h"

namespace pyserve {

void conv2d_mma_sm80(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  with_matrix_element(p.dtype, [&](auto element) { mma::conv2d<decltype(element)>(p, args, queue); });
}

}  // namespace pyserve
