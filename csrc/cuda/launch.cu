// The CUDA implementations of the operators: the device, its current stream and scratch memory by torch, through the
// stable ABI. Needs libtorch_cuda.so when it is loaded, not when it is built.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../launch_batch_norm.h"
#include "kernels.h"

namespace pyserve {
namespace {

int32_t attribute(cudaDeviceAttr name, int32_t device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA device: ") + cudaGetErrorString(error));
  return value;
}

int32_t capability(int32_t device) {
  return attribute(cudaDevAttrComputeCapabilityMajor, device) * 10 +
         attribute(cudaDevAttrComputeCapabilityMinor, device);
}

constexpr int32_t kLeastCapability = 80;  // of the plainest variants; older GPUs are ATen's

// Memory of torch's caching allocator, on the current stream: what is freed when the operator returns is given out
// again only to work that follows on that stream. A CUDA graph that is being captured gets its own, likewise.
struct Scratch {
  const Tensor& on;
  std::vector<Tensor> tensors;

  static void* allocate(void* owner, int64_t size_bytes) {
    auto& scratch = *static_cast<Scratch*>(owner);
    scratch.tensors.push_back(
        torch::stable::empty(std::vector<int64_t>{size_bytes}, ScalarType::Byte, std::nullopt, scratch.on.device()));
    return scratch.tensors.back().mutable_data_ptr();
  }
};

struct Cuda {
  static bool has(const Tensor& x) {
    return capability(x.get_device_index()) >= kLeastCapability &&
           kernel_dtype(dtype_name(x.scalar_type())).has_value();
  }

  static bool covers(const Conv2dProblem& problem) { return covers_axes(problem); }

  static bool pools(const Conv2dProblem& problem, const Tensor& on) {
    return choose_cuda<Op::conv2d>(problem, capability(on.get_device_index())).variant != Variant::count;
  }

  static bool masks_gradient(const Conv2dProblem& problem, const std::vector<bool>& wanted, const Tensor& on) {
    const int32_t found = capability(on.get_device_index());
    return (!wanted[0] || also_done_by(choose_cuda<Op::conv2d_dgrad>(problem, found).variant) == Also::mask) &&
           (!wanted[1] || also_done_by(choose_cuda<Op::conv2d_wgrad>(problem, found).variant) == Also::mask);
  }

  static bool gives_statistics(const Conv2dProblem& problem, const Tensor& on) {
    const CudaChoice<Op::conv2d> choice = choose_cuda<Op::conv2d>(problem, capability(on.get_device_index()));
    return also_done_by(choice.variant) == Also::statistics;
  }

  template <Op op>
  static void run(const ProblemOf<op>& problem, const ArgsOf<op>& args, const Tensor& on) {
    const int32_t device = on.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    Scratch scratch{on, {}};
    const Queue queue{stream,           capability(device), attribute(cudaDevAttrMultiProcessorCount, device),
                      preferred_tile(), Scratch::allocate,  &scratch};
    const CudaChoice<op> choice = choose_cuda<op>(problem, queue.capability);
    note_choice(problem, choice.variant);
    count_call(choice.variant);
    choice.run(problem, args, queue);
  }
};

}  // namespace
}  // namespace pyserve

STABLE_TORCH_LIBRARY_IMPL(pyserve, CUDA, m) {
  pyserve::register_all<pyserve::Cuda>(m);
  m.impl("batch_norm_relu", TORCH_BOX(&pyserve::launch_batch_norm_relu<pyserve::Cuda>));
  m.impl("conv2d_statistics", TORCH_BOX(&pyserve::launch_conv2d_statistics<pyserve::Cuda>));
  m.impl("batch_norm_relu_backward", TORCH_BOX(&pyserve::launch_batch_norm_relu_backward<pyserve::Cuda>));
}
