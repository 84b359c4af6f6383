// The CPU implementations of the operators, and ATen for devices that have none.
#include <exception>

#include "../chain.h"
#include "../launch_batch_norm.h"
#include "../pixels.h"
#include "../workspace.h"
#include "team.h"

namespace pyserve {
namespace {

void run_on_torch_pool(int64_t n, int64_t grain, Pool::Body body, void* context) {
  torch::stable::parallel_for(0, n, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
}

// What a call's kernels run with.
struct Call {
  Workspace workspace;
  Team* team = nullptr;  // of a call with many loops

  Pool pool() { return {run, allocate, this, static_cast<int64_t>(torch::stable::get_num_threads())}; }

 private:
  static void run(void* owner, int64_t n, int64_t grain, Pool::Body body, void* context) {
    Team* const team = static_cast<Call*>(owner)->team;
    team ? team->run(n, grain, body, context) : run_on_torch_pool(n, grain, body, context);
  }
  static void* allocate(void* owner, int64_t size_bytes) {
    return static_cast<Call*>(owner)->workspace.allocate(size_bytes);
  }
};

// Calls f(pool) with the threads of PyTorch's pool as one team.
template <class F>
void with_team(Call& call, F&& f) {
  const Pool pool = call.pool();
  if (pool.threads == 1) return f(pool);
  Team team(pool.threads);
  call.team = &team;
  std::exception_ptr error;  // PyTorch's loop would tell its caller no more than that there was one
  torch::stable::parallel_for(0, pool.threads, 1, [&](int64_t member, int64_t) {
    if (member > 0) return team.help(member);
    try {
      f(pool);
    } catch (...) {
      error = std::current_exception();
    }
    team.dismiss();
  });
  if (error) std::rethrow_exception(error);
}

struct Cpu {
  static bool has(const Tensor& x) {
    return x.scalar_type() != ScalarType::Half && kernel_dtype(dtype_name(x.scalar_type())).has_value();
  }
  static bool covers(const Conv2dProblem&) { return true; }
  static bool pools(const Conv2dProblem& p, const Tensor&) {
    return choose_cpu<Op::conv2d>(p).variant != Variant::count;
  }
  static bool masks_gradient(const Conv2dProblem&, const std::vector<bool>&, const Tensor&) { return false; }
  static bool gives_statistics(const Conv2dProblem&, const Tensor&) { return false; }

  template <Op op>
  static void run(const ProblemOf<op>& problem, const ArgsOf<op>& args, const Tensor&) {
    Call call;
    run_cpu<op>(problem, args, call.pool());
  }
};

}  // namespace

template <>
constexpr bool kTakesKcrs<Cpu> = true;

namespace {

// A device without kernels of ours (a GPU where the CUDA library is not built, other accelerators): all by ATen.
struct Elsewhere {
  static bool has(const Tensor&) { return false; }
  static bool covers(const Conv2dProblem&) { return false; }
  static bool pools(const Conv2dProblem&, const Tensor&) { return false; }
  static bool masks_gradient(const Conv2dProblem&, const std::vector<bool>&, const Tensor&) { return false; }
  static bool gives_statistics(const Conv2dProblem&, const Tensor&) { return false; }
  template <Op op>
  static void run(const ProblemOf<op>&, const ArgsOf<op>&, const Tensor&) {}
};

// weight [K, C/groups, R, S] of any layout.
Tensor conv2d_pack(const Tensor& weight, int64_t variant, Ints x, Ints stride, Ints padding, Ints dilation,
                   int64_t groups) {
  const TensorInfo weight_info = tensor_info(weight);
  const TensorInfo x_info{x, weight_info.dtype, weight_info.device};
  const Conv2dProblem p = check_conv2d(
      {x_info, weight_info, std::nullopt, std::nullopt, stride, padding, dilation, groups, -INFINITY, INFINITY});
  const Packing* packing = packing_of(static_cast<Variant>(variant));
  const int64_t size = packing ? packing->size(p) : 0;
  Tensor packed = torch::stable::empty(Ints{size}, ScalarType::Float);
  if (size == 0) return packed;
  Call call;
  packing->pack(p, channels_last(weight).const_data_ptr(), static_cast<float*>(packed.mutable_data_ptr()), call.pool());
  return packed;
}

// For every device, so that others than the CPU get the sentence.
Tensor launch_normalize_pixels(const Tensor& pixels, const Tensor& table) {
  check_normalize_pixels(tensor_info(pixels), tensor_info(table));
  const auto sizes = pixels.sizes(), strides = pixels.strides();
  Tensor y = empty_like_in(table, {sizes.begin(), sizes.end()}, MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  const PixelsProblem p{sizes[0],   sizes[2],   sizes[3],   strides[0],
                        strides[1], strides[2], strides[3], *kernel_dtype(dtype_name(table.scalar_type()))};
  const Tensor dense = torch::stable::contiguous(table);
  Call call;
  normalize_pixels(p,
                   {static_cast<const uint8_t*>(pixels.const_data_ptr()), dense.const_data_ptr(), y.mutable_data_ptr()},
                   call.pool());
  return y;
}

// A value of the chain as a tensor: [N, C, H, W] in channels-last memory, or [N, C].
Tensor empty_value(const ChainValue& v, ScalarType type) {
  if (v.dims == 2) return torch::stable::empty(Ints{v.N, v.C}, type);
  return torch::stable::empty(Ints{v.N, v.C, v.H, v.W}, type, std::nullopt, std::nullopt, std::nullopt,
                              MemoryFormat::ChannelsLast);
}

std::vector<Tensor> run_chain(std::vector<Tensor> inputs, std::vector<Tensor> constants, const Tensor& program) {
  const Chain chain(static_cast<const int64_t*>(program.const_data_ptr()), program.numel());
  const ScalarType type = chain.dtype == DType::f32 ? ScalarType::Float : ScalarType::BFloat16;
  std::vector<Tensor> outputs(static_cast<size_t>(chain.count(Place::output)));
  std::vector<const void*> in(inputs.size());
  std::vector<void*> out(outputs.size());
  for (const ChainValue& v : chain.values) {
    const auto at = static_cast<size_t>(v.at);
    if (v.place == Place::output) {
      outputs.at(at) = empty_value(v, type);
      out[at] = outputs[at].mutable_data_ptr();
    } else if (v.place == Place::input) {
      Tensor& x = inputs.at(at);
      x = v.dims == 4 ? channels_last(x) : torch::stable::contiguous(x);
      STD_TORCH_CHECK(x.numel() == v.numel() && x.scalar_type() == type,
                      "run_chain: an input does not fit the program");
      in[at] = x.const_data_ptr();
    }
  }
  std::vector<ChainConstant> weights;
  for (const Tensor& constant : constants) {
    STD_TORCH_CHECK(constant.is_contiguous(), "run_chain: a constant is not contiguous");
    weights.push_back({constant.const_data_ptr(), constant.numel()});
  }
  Workspace values;
  void* const memory = values.allocate(chain.workspace_bytes);
  Call call;
  with_team(call,
            [&](const Pool& pool) { chain.run(in, out, weights, memory, pool, [&] { call.workspace.reset(); }); });
  return outputs;
}

}  // namespace
}  // namespace pyserve

STABLE_TORCH_LIBRARY_IMPL(pyserve, CPU, m) {
  pyserve::register_all<pyserve::Cpu>(m);
  m.impl("batch_norm_relu", TORCH_BOX(&pyserve::launch_batch_norm_relu<pyserve::Cpu>));
  m.impl("conv2d_statistics", TORCH_BOX(&pyserve::launch_conv2d_statistics<pyserve::Cpu>));
  m.impl("batch_norm_relu_backward", TORCH_BOX(&pyserve::launch_batch_norm_relu_backward<pyserve::Cpu>));
  m.impl("conv2d_pack", TORCH_BOX(&pyserve::conv2d_pack));
  m.impl("run_chain", TORCH_BOX(&pyserve::run_chain));
}
STABLE_TORCH_LIBRARY_IMPL(pyserve, CompositeExplicitAutograd, m) {
  pyserve::register_all<pyserve::Elsewhere>(m);
  m.impl("normalize_pixels", TORCH_BOX(&pyserve::launch_normalize_pixels));
}
