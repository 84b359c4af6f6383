// bias_relu's CUDA variants: from the problem's element type to a kernel's template.
#include "bias_relu_simt.cuh"
#include "kernels.h"

namespace pyserve {

void bias_relu_simt_cuda(const BiasReluProblem& p, const BiasReluArgs& args, const Queue& queue) {
  with_element(p.dtype, [&](auto element) { simt::bias_relu<decltype(element)>(p, args, queue); });
}

void bias_relu_backward_simt_cuda(const BiasReluProblem& p, const BiasReluBackwardArgs& args, const Queue& queue) {
  with_element(p.dtype, [&](auto element) { simt::bias_relu_backward<decltype(element)>(p, args, queue); });
}

}  // namespace pyserve
