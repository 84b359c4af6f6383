// Every kernel variant, one row each. A row declares the kernel, puts it into the dispatch, and into the list that the
// tests and benchmarks enumerate (pyserve._C.variants()). Within an operator the first row that runs on this machine
// and covers the problem is chosen; `scalar` covers everything.
#pragma once
#include <cstdint>

#include "bias_relu.h"
#include "conv2d.h"
#include "parallel.h"

namespace pyserve {

enum class Isa : int32_t { scalar, avx2, avx512 };
enum class Op : int32_t { conv2d, conv2d_dgrad, conv2d_wgrad, bias_relu, bias_relu_backward };

// What a kernel takes; each is a pure function of the problem. The vector kernels know no float64 and at most 64 taps
// along an axis (the depthwise ones in all).
PYSERVE_INLINE bool covers_any(const Conv2dProblem&) { return true; }
PYSERVE_INLINE bool covers_any(const BiasReluProblem&) { return true; }
PYSERVE_INLINE bool covers_floats(const BiasReluProblem& p) { return p.dtype != DType::f64; }
PYSERVE_INLINE bool covers_floats(const Conv2dProblem& p) { return p.dtype != DType::f64 && p.R <= 64 && p.S <= 64; }
PYSERVE_INLINE bool covers_depthwise(const Conv2dProblem& p) {
  return covers_floats(p) && p.depthwise() && p.R * p.S <= 64;
}

// What a CUDA kernel takes: coordinates along one axis, padding included, are 32-bit there.
PYSERVE_INLINE bool covers_axes(const Conv2dProblem& p) {
  constexpr int64_t most = INT32_MAX;
  return p.pad_h <= most && p.pad_w <= most && p.H + 2 * p.pad_h <= most && p.W + 2 * p.pad_w <= most;
}

// ROW(operator, algorithm, ISA, covers): the kernel is `<operator>_<algorithm>_<ISA>` and lives in
// cpu/<conv2d or bias_relu>_<algorithm>_<ISA>.cpp.
#define PYSERVE_PLAIN_VARIANTS(ROW)             \
  ROW(conv2d, direct, scalar, covers_any)       \
  ROW(conv2d_dgrad, direct, scalar, covers_any) \
  ROW(conv2d_wgrad, direct, scalar, covers_any) \
  ROW(bias_relu, pointwise, scalar, covers_any) \
  ROW(bias_relu_backward, pointwise, scalar, covers_any)

#define PYSERVE_X86_VARIANTS(ROW)                           \
  ROW(conv2d, depthwise, avx512, covers_depthwise)          \
  ROW(conv2d, direct, avx512, covers_floats)                \
  ROW(conv2d_dgrad, depthwise, avx512, covers_depthwise)    \
  ROW(conv2d_dgrad, direct, avx512, covers_floats)          \
  ROW(conv2d_wgrad, depthwise, avx512, covers_depthwise)    \
  ROW(conv2d_wgrad, direct, avx512, covers_floats)          \
  ROW(bias_relu, pointwise, avx512, covers_floats)          \
  ROW(bias_relu_backward, pointwise, avx512, covers_floats) \
  ROW(conv2d, depthwise, avx2, covers_depthwise)            \
  ROW(conv2d, direct, avx2, covers_floats)                  \
  ROW(conv2d_dgrad, depthwise, avx2, covers_depthwise)      \
  ROW(conv2d_dgrad, direct, avx2, covers_floats)            \
  ROW(conv2d_wgrad, depthwise, avx2, covers_depthwise)      \
  ROW(conv2d_wgrad, direct, avx2, covers_floats)            \
  ROW(bias_relu, pointwise, avx2, covers_floats)            \
  ROW(bias_relu_backward, pointwise, avx2, covers_floats)

#if defined(__x86_64__)
#define PYSERVE_CPU_VARIANTS(ROW) PYSERVE_X86_VARIANTS(ROW) PYSERVE_PLAIN_VARIANTS(ROW)
#else
#define PYSERVE_CPU_VARIANTS(ROW) PYSERVE_PLAIN_VARIANTS(ROW)
#endif

// ROW(operator, algorithm, architecture, covers, least compute capability × 10). The kernels are in cuda/, dispatched
// there.
#define PYSERVE_CUDA_VARIANTS(ROW)               \
  ROW(conv2d, simt, cuda, covers_axes, 80)       \
  ROW(conv2d_dgrad, simt, cuda, covers_axes, 80) \
  ROW(conv2d_wgrad, simt, cuda, covers_axes, 80) \
  ROW(bias_relu, simt, cuda, covers_any, 80)     \
  ROW(bias_relu_backward, simt, cuda, covers_any, 80)

enum class Variant : int32_t {
#define ROW(op, algorithm, isa, covers) op##_##algorithm##_##isa,
  PYSERVE_CPU_VARIANTS(ROW)
#undef ROW
#define ROW(op, algorithm, architecture, covers, capability) op##_##algorithm##_##architecture,
      PYSERVE_CUDA_VARIANTS(ROW)
#undef ROW
          count
};

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
template <Op op>
using ProblemOf = typename OpTypes<op>::Problem;
template <Op op>
using ArgsOf = typename OpTypes<op>::Args;

#define ROW(op, algorithm, isa, covers) \
  void op##_##algorithm##_##isa(const ProblemOf<Op::op>&, const ArgsOf<Op::op>&, const Pool&);
PYSERVE_CPU_VARIANTS(ROW)
#undef ROW

}  // namespace pyserve
