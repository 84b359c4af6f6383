// The CPU implementations of the operators, and ATen for devices that have none.
#include "../launch.h"

#include "../workspace.h"

namespace pyserve {
namespace {

void run_on_torch_pool(int64_t n, int64_t grain, Pool::Body body, void* context) {
  torch::stable::parallel_for(0, n, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

void* allocate_workspace(void* owner, int64_t size_bytes) {
  return static_cast<Workspace*>(owner)->allocate(size_bytes);
}

struct Cpu {
  static bool has(ScalarType type) { return kernel_dtype(dtype_name(type)).has_value(); }

  template <Op op>
  static void run(const ProblemOf<op>& problem, const ArgsOf<op>& args, const Tensor&) {
    Workspace workspace;
    const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
    run_cpu<op>(problem, args, {run_on_torch_pool, allocate_workspace, &workspace, threads});
  }
};

// A device without kernels of ours (a GPU where the CUDA library is not built, other accelerators): all by ATen.
struct Elsewhere {
  static bool has(ScalarType) { return false; }
  template <Op op>
  static void run(const ProblemOf<op>&, const ArgsOf<op>&, const Tensor&) {}
};

template <class Backend>
void register_all(torch::stable::detail::StableLibrary& m) {
  m.impl("conv2d", TORCH_BOX(&launch_conv2d<Backend>));
  m.impl("conv2d_backward", TORCH_BOX(&launch_conv2d_backward<Backend>));
  m.impl("bias_relu", TORCH_BOX(&launch_bias_relu<Backend>));
  m.impl("bias_relu_backward", TORCH_BOX(&launch_bias_relu_backward<Backend>));
}

}  // namespace
}  // namespace pyserve

STABLE_TORCH_LIBRARY_IMPL(pyserve, CPU, m) { pyserve::register_all<pyserve::Cpu>(m); }
STABLE_TORCH_LIBRARY_IMPL(pyserve, CompositeExplicitAutograd, m) { pyserve::register_all<pyserve::Elsewhere>(m); }
