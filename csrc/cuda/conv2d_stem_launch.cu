// The first layer's CUDA variant with max pooling: from the problem's element type to a kernel's template.
#include "conv2d_stem.cuh"
#include "kernels.h"

namespace pyserve {

void conv2d_stem_sm80(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  with_matrix_element(p.dtype, [&](auto element) { stem::conv2d_pooled<decltype(element)>(p, args, queue); });
}

}  // namespace pyserve
