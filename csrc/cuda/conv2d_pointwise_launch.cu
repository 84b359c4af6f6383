// The 1×1 convolution and its gradients on tensor cores: from the problem's element type to a kernel's template.
#include "conv2d_mma.cuh"
#include "kernels.h"

namespace pyserve {

void conv2d_pointwise_sm80(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  with_matrix_element(p.dtype, [&](auto element) { mma::conv2d<decltype(element), true>(p, args, queue); });
}

void conv2d_dgrad_pointwise_sm80(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Queue& queue) {
  with_matrix_element(p.dtype, [&](auto element) { mma::conv2d_dgrad<decltype(element), true>(p, args, queue); });
}

void conv2d_wgrad_pointwise_sm80(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Queue& queue) {
  with_matrix_element(p.dtype, [&](auto element) { mma::conv2d_wgrad<decltype(element), true>(p, args, queue); });
}

}  // namespace pyserve
