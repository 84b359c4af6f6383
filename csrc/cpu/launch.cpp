// The CPU implementations of the operators, and ATen for devices that have none.
#include "../launch.h"

namespace pyserve {
namespace {

void run_on_torch_pool(int64_t n, int64_t grain, Pool::Body body, void* context) {
  torch::stable::parallel_for(0, n, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

void* allocate_tensor(void* owner, int64_t size_bytes) {
  auto& scratch = *static_cast<std::vector<Tensor>*>(owner);
  scratch.push_back(torch::stable::empty(std::vector<int64_t>{size_bytes}, ScalarType::Byte));
  return scratch.back().mutable_data_ptr();
}

struct Cpu {
  static bool has(const Tensor& x) { return kernel_dtype(dtype_name(x.scalar_type())).has_value(); }
  static bool covers(const Conv2dProblem&) { return true; }

  template <Op op>
  static void run(const ProblemOf<op>& problem, const ArgsOf<op>& args, const Tensor&) {
    std::vector<Tensor> scratch;
    run_cpu<op>(problem, args, {run_on_torch_pool, allocate_tensor, &scratch});
  }
};

// A device without kernels of ours (a GPU where the CUDA library is not built, other accelerators): all by ATen.
struct Elsewhere {
  static bool has(const Tensor&) { return false; }
  static bool covers(const Conv2dProblem&) { return false; }
  template <Op op>
  static void run(const ProblemOf<op>&, const ArgsOf<op>&, const Tensor&) {}
};

}  // namespace
}  // namespace pyserve

STABLE_TORCH_LIBRARY_IMPL(pyserve, CPU, m) { pyserve::register_all<pyserve::Cpu>(m); }
STABLE_TORCH_LIBRARY_IMPL(pyserve, CompositeExplicitAutograd, m) { pyserve::register_all<pyserve::Elsewhere>(m); }
