// The depthwise convolution's CUDA variants: from the problem's element type and alignment to a kernel's template.
#include "conv2d_depthwise.cuh"
#include "kernels.h"

namespace pyserve {

void conv2d_depthwise_cuda(const Conv2dProblem& p, const Conv2dArgs& args, const Queue& queue) {
  const bool whole = aligned(args.x) && aligned(args.bias) && aligned(args.residual) && aligned(args.y);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    depthwise::with_vector<T>(p, whole, [&](auto count) { depthwise::forward<T, count>(p, args, queue); });
  });
}

void conv2d_dgrad_depthwise_cuda(const Conv2dProblem& p, const Conv2dDgradArgs& args, const Queue& queue) {
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    depthwise::with_vector<T>(p, aligned(args.grad) && aligned(args.dx),
                              [&](auto count) { depthwise::dgrad<T, count>(p, args, queue); });
  });
}

void conv2d_wgrad_depthwise_cuda(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Queue& queue) {
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    depthwise::with_vector<T>(p, aligned(args.grad) && aligned(args.x),
                              [&](auto count) { depthwise::wgrad<T, count>(p, args, queue); });
  });
}

}  // namespace pyserve
