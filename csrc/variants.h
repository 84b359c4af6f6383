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

// What the vector kernels take; each is a pure function of the problem.
inline bool covers_any(const Conv2dProblem&) { return true; }
inline bool covers_any(const BiasReluProblem&) { return true; }

// Rows for processors without these extensions are left out by the build.
#if defined(__x86_64__)
#define PYSERVE_X86(...) __VA_ARGS__
#else
#define PYSERVE_X86(...)
#endif

// ROW(operator, algorithm, ISA, covers): the kernel is `<operator>_<algorithm>_<ISA>` and lives in
// cpu/<operator's family>_<algorithm>_<ISA>.cpp.
#define PYSERVE_CPU_VARIANTS(ROW)               \
  ROW(conv2d, direct, scalar, covers_any)       \
  ROW(conv2d_dgrad, direct, scalar, covers_any) \
  ROW(conv2d_wgrad, direct, scalar, covers_any) \
  ROW(bias_relu, pointwise, scalar, covers_any) \
  ROW(bias_relu_backward, pointwise, scalar, covers_any)

// ROW(operator, algorithm, architecture, least compute capability × 10). The kernels are in cuda/, dispatched there.
#define PYSERVE_CUDA_VARIANTS(ROW)  \
  ROW(conv2d, simt, cuda, 80)       \
  ROW(conv2d_dgrad, simt, cuda, 80) \
  ROW(conv2d_wgrad, simt, cuda, 80) \
  ROW(bias_relu, simt, cuda, 80)    \
  ROW(bias_relu_backward, simt, cuda, 80)

enum class Variant : int32_t {
#define ROW(op, algorithm, isa, covers) op##_##algorithm##_##isa,
  PYSERVE_CPU_VARIANTS(ROW) PYSERVE_CUDA_VARIANTS(ROW)
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
