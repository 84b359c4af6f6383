// Every kernel variant, one row each. A row declares the kernel, puts it into the dispatch, and into the list that the
// tests and benchmarks enumerate (pyserve._C.variants()). Within an operator the first row that runs on this machine
// and covers the problem is chosen; `scalar` covers everything.
#pragma once
#include <cstdint>

#include "batch_norm_relu.h"
#include "bias_relu.h"
#include "conv2d.h"
#include "linear.h"
#include "parallel.h"
#include "pooling.h"

namespace pyserve {

enum class Isa : int32_t { scalar, avx2, avx512, avx512_bf16 };
enum class Op : int32_t {
  conv2d,
  conv2d_dgrad,
  conv2d_wgrad,
  bias_relu,
  bias_relu_backward,
  batch_norm_relu,
  batch_norm_relu_backward,
  max_pool2d,
  average_pool2d,
  linear
};

// What a kernel takes; each is a pure function of the problem. The vector kernels know no float64 and at most 64 taps
// along an axis (the depthwise ones in all).
PYSERVE_INLINE bool covers_any(const Conv2dProblem& p) { return p.dtype != DType::f16 && p.pool.size == 0; }
PYSERVE_INLINE bool covers_any(const BiasReluProblem& p) { return p.dtype != DType::f16; }
PYSERVE_INLINE bool covers_any(const BatchNormProblem& p) { return p.dtype != DType::f16; }
PYSERVE_INLINE bool covers_any(const PoolingProblem& p) { return p.dtype != DType::f16; }
PYSERVE_INLINE bool covers_any(const LinearProblem& p) { return p.dtype != DType::f16; }
PYSERVE_INLINE bool covers_floats(const BiasReluProblem& p) { return covers_any(p) && p.dtype != DType::f64; }
PYSERVE_INLINE bool covers_floats(const BatchNormProblem& p) { return covers_any(p) && p.dtype != DType::f64; }
PYSERVE_INLINE bool covers_floats(const PoolingProblem& p) { return covers_any(p) && p.dtype != DType::f64; }
PYSERVE_INLINE bool covers_floats(const LinearProblem& p) { return covers_any(p) && p.dtype != DType::f64; }
PYSERVE_INLINE bool covers_floats(const Conv2dProblem& p) {
  return covers_any(p) && p.dtype != DType::f64 && p.R <= 64 && p.S <= 64;
}
PYSERVE_INLINE bool covers_depthwise(const Conv2dProblem& p) {
  return covers_floats(p) && p.depthwise() && p.R * p.S <= 64;
}
// Sums over fewer channels than this are so exact when done directly that Winograd's rounding would show.
constexpr int64_t kLeastWinogradChannels = 16;
PYSERVE_INLINE bool covers_3x3(const Conv2dProblem& p, int64_t stride) {
  const bool plain = p.groups == 1 && p.R == 3 && p.S == 3 && p.stride_h == stride && p.stride_w == stride &&
                     p.dilation_h == 1 && p.dilation_w == 1 && p.pad_h <= 2 && p.pad_w <= 2;
  return plain && covers_floats(p) && p.C >= kLeastWinogradChannels;
}
PYSERVE_INLINE bool covers_winograd(const Conv2dProblem& p) { return covers_3x3(p, 1); }
PYSERVE_INLINE bool covers_polyphase(const Conv2dProblem& p) { return covers_3x3(p, 2); }
PYSERVE_INLINE bool covers_pointwise(const Conv2dProblem& p) {
  return covers_floats(p) && p.groups == 1 && p.R == 1 && p.S == 1 && p.pad_h == 0 && p.pad_w == 0;
}
PYSERVE_INLINE bool covers_pointwise_dgrad(const Conv2dProblem& p) {
  return covers_pointwise(p) && p.stride_h == 1 && p.stride_w == 1;
}
// Sums over pairs of bfloat16 channels.
PYSERVE_INLINE bool covers_pairs(const Conv2dProblem& p) {
  return covers_floats(p) && p.dtype == DType::bf16 && p.group_c() % 2 == 0;
}
PYSERVE_INLINE bool covers_pointwise_pairs(const Conv2dProblem& p) { return covers_pointwise(p) && covers_pairs(p); }
// Transformed weights are four times the plain ones: with few tiles of 4×4 outputs the time would go to reading them.
PYSERVE_INLINE bool worth_transforming(const Conv2dProblem& p) {
  return p.N * ((p.P + 3) / 4) * ((p.Q + 3) / 4) >= 12 || p.C * p.K <= 1 << 16;
}
PYSERVE_INLINE bool covers_winograd_pairs(const Conv2dProblem& p) {
  return covers_winograd(p) && covers_pairs(p) && worth_transforming(p);
}
PYSERVE_INLINE bool covers_polyphase_pairs(const Conv2dProblem& p) {
  return covers_polyphase(p) && covers_pairs(p) && worth_transforming(p);
}
// First layers have few channels; a max pooling may follow, whose windows take few rows.
PYSERVE_INLINE bool covers_first(const Conv2dProblem& p) {
  const bool plain = p.groups == 1 && p.dilation_h == 1 && p.dilation_w == 1;
  return plain && p.C <= 4 && p.pool.size <= 4 && covers_floats(p.without_pool());
}
PYSERVE_INLINE bool covers_stem(const Conv2dProblem& p) {
  return covers_first(p) && p.R == 7 && p.S == 7 && p.stride_h == 2 && p.stride_w == 2;
}
constexpr int64_t kMostShallowTaps = 11;  // along an axis
PYSERVE_INLINE bool covers_shallow(const Conv2dProblem& p) {
  return covers_first(p) && p.R <= kMostShallowTaps && p.S <= kMostShallowTaps && p.stride_w <= 2;
}
PYSERVE_INLINE bool covers_winograd_dgrad(const Conv2dProblem& p) {
  return covers_winograd(p) && p.K >= kLeastWinogradChannels;
}
PYSERVE_INLINE bool covers_winograd_dgrad_pairs(const Conv2dProblem& p) {
  return covers_winograd_dgrad(p) && p.dtype == DType::bf16 && p.K % 2 == 0 && worth_transforming(p);
}
// Sums over pairs of tiles.
PYSERVE_INLINE bool covers_winograd_wgrad_pairs(const Conv2dProblem& p) {
  return covers_winograd(p) && p.dtype == DType::bf16;
}
PYSERVE_INLINE bool covers_polyphase_wgrad_pairs(const Conv2dProblem& p) {
  return covers_polyphase(p) && p.dtype == DType::bf16;
}

// What a CUDA kernel takes: every element type, and coordinates along one axis, padding included, are 32-bit there.
PYSERVE_INLINE bool covers_axes(const Conv2dProblem& p) {
  constexpr int64_t most = INT32_MAX;
  const bool small = p.pad_h <= most && p.pad_w <= most && p.H + 2 * p.pad_h <= most && p.W + 2 * p.pad_w <= most;
  return small && p.pool.size == 0;
}
PYSERVE_INLINE bool covers_all(const BiasReluProblem&) { return true; }
PYSERVE_INLINE bool covers_all(const BatchNormProblem&) { return true; }
PYSERVE_INLINE bool covers_channelwise(const Conv2dProblem& p) {
  return covers_axes(p) && p.depthwise() && p.R * p.S <= 64;
}
// Tensor cores: no float64, float32 only as TF32, 32-bit indices, and groups whose channels come in multiples of 16
// bytes.
PYSERVE_INLINE bool covers_mma(const Conv2dProblem& p) {
  constexpr int64_t most = INT32_MAX;
  const int64_t wide = p.dtype == DType::f32 ? 4 : 8, taps = p.R * p.S;
  const bool type = p.dtype == DType::bf16 || p.dtype == DType::f16 || (p.dtype == DType::f32 && p.tf32);
  const bool channels = p.groups == 1 || (p.group_c() % wide == 0 && p.group_k() % wide == 0);
  const bool small = p.N * p.P * p.Q <= most && p.N * p.H * p.W <= most && taps * (p.C + wide) <= most &&
                     taps * (p.K + wide) <= most && p.K + 128 <= most && p.C + 128 <= most;
  return type && channels && small && covers_axes(p);
}
// 1×1 kernels as plain matrix products; an image's few channels are padded elsewhere.
PYSERVE_INLINE bool covers_pointwise_mma(const Conv2dProblem& p) {
  return covers_mma(p) && p.R == 1 && p.S == 1 && p.pad_h == 0 && p.pad_w == 0 && p.C > 4;
}
// First layers of few channels with the max pooling after them; what they need of shared memory grows with the taps.
PYSERVE_INLINE bool covers_pooled_mma(const Conv2dProblem& p) {
  const bool few = p.groups == 1 && p.C <= 4 && p.R <= 8 && p.S <= 8 && p.dilation_h == 1 && p.dilation_w == 1;
  const bool pool = p.pool.size >= 1 && p.pool.size <= 4 && p.pool.stride >= 1;
  return few && pool && p.stride_h == 2 && p.stride_w == 2 && covers_mma(p.without_pool());
}

// ROW(operator, algorithm, ISA, covers): the kernel is `<operator>_<algorithm>_<ISA>` and lives in
// cpu/<conv2d, bias_relu, batch_norm_relu, pooling or linear>_<algorithm>_<ISA>.cpp.
#define PYSERVE_PLAIN_VARIANTS(ROW)                       \
  ROW(conv2d, direct, scalar, covers_any)                 \
  ROW(conv2d_dgrad, direct, scalar, covers_any)           \
  ROW(conv2d_wgrad, direct, scalar, covers_any)           \
  ROW(bias_relu, pointwise, scalar, covers_any)           \
  ROW(bias_relu_backward, pointwise, scalar, covers_any)  \
  ROW(batch_norm_relu, rows, scalar, covers_any)          \
  ROW(batch_norm_relu_backward, rows, scalar, covers_any) \
  ROW(max_pool2d, direct, scalar, covers_any)             \
  ROW(average_pool2d, direct, scalar, covers_any)         \
  ROW(linear, rows, scalar, covers_any)

#define PYSERVE_X86_VARIANTS(ROW)                                         \
  ROW(conv2d, depthwise, avx512, covers_depthwise)                        \
  ROW(conv2d, pointwise, avx512_bf16, covers_pointwise_pairs)             \
  ROW(conv2d, winograd, avx512_bf16, covers_winograd_pairs)               \
  ROW(conv2d, polyphase, avx512_bf16, covers_polyphase_pairs)             \
  ROW(conv2d, direct, avx512_bf16, covers_pairs)                          \
  ROW(conv2d, winograd, avx512, covers_winograd)                          \
  ROW(conv2d, polyphase, avx512, covers_polyphase)                        \
  ROW(conv2d, stem, avx512, covers_stem)                                  \
  ROW(conv2d, shallow, avx512, covers_shallow)                            \
  ROW(conv2d, pointwise, avx512, covers_pointwise)                        \
  ROW(conv2d, direct, avx512, covers_floats)                              \
  ROW(conv2d_dgrad, depthwise, avx512, covers_depthwise)                  \
  ROW(conv2d_dgrad, winograd, avx512_bf16, covers_winograd_dgrad_pairs)   \
  ROW(conv2d_dgrad, winograd, avx512, covers_winograd_dgrad)              \
  ROW(conv2d_dgrad, pointwise, avx512, covers_pointwise_dgrad)            \
  ROW(conv2d_dgrad, direct, avx512, covers_floats)                        \
  ROW(conv2d_wgrad, depthwise, avx512, covers_depthwise)                  \
  ROW(conv2d_wgrad, winograd, avx512_bf16, covers_winograd_wgrad_pairs)   \
  ROW(conv2d_wgrad, polyphase, avx512_bf16, covers_polyphase_wgrad_pairs) \
  ROW(conv2d_wgrad, winograd, avx512, covers_winograd)                    \
  ROW(conv2d_wgrad, polyphase, avx512, covers_polyphase)                  \
  ROW(conv2d_wgrad, shallow, avx512, covers_shallow)                      \
  ROW(conv2d_wgrad, direct, avx512, covers_floats)                        \
  ROW(bias_relu, pointwise, avx512, covers_floats)                        \
  ROW(bias_relu_backward, pointwise, avx512, covers_floats)               \
  ROW(batch_norm_relu, rows, avx512, covers_floats)                       \
  ROW(batch_norm_relu_backward, rows, avx512, covers_floats)              \
  ROW(max_pool2d, direct, avx512, covers_floats)                          \
  ROW(average_pool2d, direct, avx512, covers_floats)                      \
  ROW(linear, rows, avx512, covers_floats)                                \
  ROW(conv2d, depthwise, avx2, covers_depthwise)                          \
  ROW(conv2d, winograd, avx2, covers_winograd)                            \
  ROW(conv2d, polyphase, avx2, covers_polyphase)                          \
  ROW(conv2d, stem, avx2, covers_stem)                                    \
  ROW(conv2d, shallow, avx2, covers_shallow)                              \
  ROW(conv2d, pointwise, avx2, covers_pointwise)                          \
  ROW(conv2d, direct, avx2, covers_floats)                                \
  ROW(conv2d_dgrad, depthwise, avx2, covers_depthwise)                    \
  ROW(conv2d_dgrad, winograd, avx2, covers_winograd_dgrad)                \
  ROW(conv2d_dgrad, pointwise, avx2, covers_pointwise_dgrad)              \
  ROW(conv2d_dgrad, direct, avx2, covers_floats)                          \
  ROW(conv2d_wgrad, depthwise, avx2, covers_depthwise)                    \
  ROW(conv2d_wgrad, winograd, avx2, covers_winograd)                      \
  ROW(conv2d_wgrad, polyphase, avx2, covers_polyphase)                    \
  ROW(conv2d_wgrad, shallow, avx2, covers_shallow)                        \
  ROW(conv2d_wgrad, direct, avx2, covers_floats)                          \
  ROW(bias_relu, pointwise, avx2, covers_floats)                          \
  ROW(bias_relu_backward, pointwise, avx2, covers_floats)                 \
  ROW(batch_norm_relu, rows, avx2, covers_floats)                         \
  ROW(batch_norm_relu_backward, rows, avx2, covers_floats)                \
  ROW(max_pool2d, direct, avx2, covers_floats)                            \
  ROW(average_pool2d, direct, avx2, covers_floats)                        \
  ROW(linear, rows, avx2, covers_floats)

#if defined(__x86_64__)
#define PYSERVE_CPU_VARIANTS(ROW) PYSERVE_X86_VARIANTS(ROW) PYSERVE_PLAIN_VARIANTS(ROW)
#else
#define PYSERVE_CPU_VARIANTS(ROW) PYSERVE_PLAIN_VARIANTS(ROW)
#endif

// What a CUDA kernel does beside its operator: a convolution's gives the statistics of its output's channels, a
// gradient's applies the activation's mask to grad as it loads it, and sums it for the bias.
enum class Also : int32_t { nothing, statistics, mask };

// ROW(operator, algorithm, architecture, covers, least compute capability × 10, what it does beside). The kernels are
// in cuda/, dispatched there.
#define PYSERVE_CUDA_VARIANTS(ROW)                                    \
  ROW(conv2d, depthwise, cuda, covers_channelwise, 80, nothing)       \
  ROW(conv2d, stem, sm80, covers_pooled_mma, 80, nothing)             \
  ROW(conv2d, pointwise, sm80, covers_pointwise_mma, 80, statistics)  \
  ROW(conv2d, mma, sm80, covers_mma, 80, statistics)                  \
  ROW(conv2d, simt, cuda, covers_axes, 80, nothing)                   \
  ROW(conv2d_dgrad, depthwise, cuda, covers_channelwise, 80, nothing) \
  ROW(conv2d_dgrad, pointwise, sm80, covers_pointwise_mma, 80, mask)  \
  ROW(conv2d_dgrad, mma, sm80, covers_mma, 80, mask)                  \
  ROW(conv2d_dgrad, simt, cuda, covers_axes, 80, nothing)             \
  ROW(conv2d_wgrad, depthwise, cuda, covers_channelwise, 80, nothing) \
  ROW(conv2d_wgrad, pointwise, sm80, covers_pointwise_mma, 80, mask)  \
  ROW(conv2d_wgrad, mma, sm80, covers_mma, 80, mask)                  \
  ROW(conv2d_wgrad, simt, cuda, covers_axes, 80, nothing)             \
  ROW(bias_relu, simt, cuda, covers_all, 80, nothing)                 \
  ROW(bias_relu_backward, simt, cuda, covers_all, 80, nothing)        \
  ROW(batch_norm_relu, simt, cuda, covers_all, 80, nothing)           \
  ROW(batch_norm_relu_backward, simt, cuda, covers_all, 80, nothing)

enum class Variant : int32_t {
#define ROW(op, algorithm, isa, covers) op##_##algorithm##_##isa,
  PYSERVE_CPU_VARIANTS(ROW)
#undef ROW
#define ROW(op, algorithm, architecture, covers, capability, also) op##_##algorithm##_##architecture,
      PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
          count
};

// How a forward kernel wants its weights laid out beforehand, as floats. Two problems that differ in N, H or W alone
// and have the same layout can share the packed weights.
struct Packing {
  int32_t (*layout)(const Conv2dProblem&);
  int64_t (*size)(const Conv2dProblem&);  // in floats
  void (*pack)(const Conv2dProblem&, const void* weight, float* packed, const Pool&);
};

// A kernel that leaves a problem to another one counts that one's call.
void count_call(Variant variant);

// Operator → its problem and its arguments.
template <Op>
struct OpTypes;
template <>
struct OpTypes<Op::conv2d> {
  using Problem = Conv2dProblem;
  using Args = Conv2dArgs;
};
template <>
struct OpTypes<Op::conv2d_dgrad> {
  using Problem = Conv2dProblem;
  using Args = Conv2dDgradArgs;
};
template <>
struct OpTypes<Op::conv2d_wgrad> {
  using Problem = Conv2dProblem;
  using Args = Conv2dWgradArgs;
};
template <>
struct OpTypes<Op::bias_relu> {
  using Problem = BiasReluProblem;
  using Args = BiasReluArgs;
};
template <>
struct OpTypes<Op::bias_relu_backward> {
  using Problem = BiasReluProblem;
  using Args = BiasReluBackwardArgs;
};
template <>
struct OpTypes<Op::max_pool2d> {
  using Problem = PoolingProblem;
  using Args = PoolingArgs;
};
template <>
struct OpTypes<Op::average_pool2d> {
  using Problem = PoolingProblem;
  using Args = PoolingArgs;
};
template <>
struct OpTypes<Op::linear> {
  using Problem = LinearProblem;
  using Args = LinearArgs;
};
template <>
struct OpTypes<Op::batch_norm_relu> {
  using Problem = BatchNormProblem;
  using Args = BatchNormReluArgs;
};
template <>
struct OpTypes<Op::batch_norm_relu_backward> {
  using Problem = BatchNormProblem;
  using Args = BatchNormReluBackwardArgs;
};
template <Op op>
using ProblemOf = typename OpTypes<op>::Problem;
template <Op op>
using ArgsOf = typename OpTypes<op>::Args;

#define ROW(op, algorithm, isa, covers) \
  void op##_##algorithm##_##isa(const ProblemOf<Op::op>&, const ArgsOf<Op::op>&, const Pool&);
PYSERVE_CPU_VARIANTS(ROW)
#undef ROW

// Of the forward variants that have one.
#if defined(__x86_64__)
#define PYSERVE_PACKED_VARIANTS(ROW)  \
  ROW(conv2d, direct, avx512_bf16)    \
  ROW(conv2d, pointwise, avx512_bf16) \
  ROW(conv2d, winograd, avx512_bf16)  \
  ROW(conv2d, polyphase, avx512_bf16) \
  ROW(conv2d, winograd, avx512)       \
  ROW(conv2d, polyphase, avx512)      \
  ROW(conv2d, stem, avx512)           \
  ROW(conv2d, shallow, avx512)        \
  ROW(conv2d, pointwise, avx512)      \
  ROW(conv2d, depthwise, avx512)      \
  ROW(conv2d, direct, avx512)         \
  ROW(conv2d, winograd, avx2)         \
  ROW(conv2d, polyphase, avx2)        \
  ROW(conv2d, stem, avx2)             \
  ROW(conv2d, shallow, avx2)          \
  ROW(conv2d, pointwise, avx2)        \
  ROW(conv2d, depthwise, avx2)        \
  ROW(conv2d, direct, avx2)
#else
#define PYSERVE_PACKED_VARIANTS(ROW)
#endif
#define ROW(op, algorithm, isa) extern const Packing op##_##algorithm##_##isa##_packing;
PYSERVE_PACKED_VARIANTS(ROW)
#undef ROW

}  // namespace pyserve
