// batch_norm_relu's CUDA variants: from the problem's element type and alignment to a kernel's template.
#include "batch_norm_relu_backward_simt.cuh"
#include "batch_norm_relu_simt.cuh"
#include "kernels.h"

namespace pyserve {

void batch_norm_relu_simt_cuda(const BatchNormProblem& p, const BatchNormReluArgs& args, const Queue& queue) {
  const bool whole = aligned(args.x) && aligned(args.weight) && aligned(args.bias) && aligned(args.residual) &&
                     aligned(args.y) && aligned(args.mean) && aligned(args.var);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    batch_norm::with_vector<T>(p, whole, [&](auto count) { batch_norm::forward<T, count>(p, args, queue); });
  });
}

void batch_norm_relu_backward_simt_cuda(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args,
                                        const Queue& queue) {
  const bool whole = aligned(args.grad) && aligned(args.y) && aligned(args.x) && aligned(args.weight) &&
                     aligned(args.bias) && aligned(args.mean) && aligned(args.var) && aligned(args.dx) &&
                     aligned(args.dweight) && aligned(args.dbias) && aligned(args.dresidual);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    batch_norm::with_vector<T>(p, whole, [&](auto count) { batch_norm::backward<T, count>(p, args, queue); });
  });
}

}  // namespace pyserve
