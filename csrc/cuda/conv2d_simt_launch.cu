// The convolution's CUDA variants: from the problem's element type to a kernel's template.
#include "conv2d_simt.cuh"
#include "kernels.h"

namespace pyserve {

void conv2d_simt_cuda(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  with_element(p.dtype, [&](auto element) { simt::conv2d<decltype(element)>(p, args, queue); });
}

void conv2d_dgrad_simt_cuda(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Queue& queue) {
  with_element(p.dtype, [&](auto element) { simt::conv2d_dgrad<decltype(element)>(p, args, queue); });
}

void conv2d_wgrad_simt_cuda(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Queue& queue) {
  with_element(p.dtype, [&](auto element) { simt::conv2d_wgrad<decltype(element)>(p, args, queue); });
}

}  // namespace pyserve
