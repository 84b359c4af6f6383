// The convolution problem as every layer sees it: sizes, element type, epilogue. Free of torch and of any ISA.
//
// Letters: N images, H×W input with C channels, K filters of R×S over C/groups channels, P×Q output.
// Tensors are dense and channels-last: x [N][H][W][C], weight [K][R][S][C/groups], y and residual [N][P][Q][K]. Weights
// may also be [K][C/groups][R][S] (`kcrs`), as optimisers want them: kernels lay them out anew in any case.
#pragma once
#include <cmath>
#include <cstdint>

// Inline functions of headers that kernel files include are always inlined: a copy compiled for one ISA must never be
// the one that the linker keeps for all. CUDA kernels use them too.
#if defined(__CUDACC__)
#define PYSERVE_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define PYSERVE_INLINE inline __attribute__((always_inline))
#endif

namespace pyserve {

enum class DType : int32_t { f32, bf16, f64, f16 };  // f16 on CUDA alone

// clamp(value + bias + residual, lo, hi): (-inf, inf) is no activation, (0, inf) ReLU, (0, 6) ReLU6. NaN stays NaN.
struct Clamp {
  double lo, hi;
  PYSERVE_INLINE bool active() const { return lo > -INFINITY || hi < INFINITY; }
  // The gradient passes where !(y <= mask_lo || y >= mask_hi); an open side compares with NaN, which is never true.
  PYSERVE_INLINE double mask_lo() const { return lo > -INFINITY ? lo : NAN; }
  PYSERVE_INLINE double mask_hi() const { return hi < INFINITY ? hi : NAN; }
};

// Max pooling of the output on its way to memory, for prediction: windows of size × size. None: size 0.
struct MaxPool {
  int64_t size, stride, pad;
};

struct Conv2dProblem {
  int64_t N, H, W, C, K, R, S, P, Q;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups;
  DType dtype;
  bool tf32;  // float32 may be multiplied as TF32
  Clamp clamp;
  bool kcrs;     // the layout of the weight, and of its gradient
  MaxPool pool;  // P and Q are the convolution's sizes; y is [N][pooled(P)][pooled(Q)][K]

  PYSERVE_INLINE int64_t pooled(int64_t size) const {
    return pool.size ? (size + 2 * pool.pad - pool.size) / pool.stride + 1 : size;
  }
  PYSERVE_INLINE Conv2dProblem without_pool() const {
    Conv2dProblem plain = *this;
    plain.pool = {};
    return plain;
  }
  // Strides of the weight.
  PYSERVE_INLINE int64_t weight_by_c() const { return kcrs ? R * S : 1; }
  PYSERVE_INLINE int64_t weight_by_tap() const { return kcrs ? 1 : C / groups; }
  PYSERVE_INLINE int64_t group_c() const { return C / groups; }
  PYSERVE_INLINE int64_t group_k() const { return K / groups; }
  PYSERVE_INLINE bool depthwise() const { return groups > 1 && groups == C && K == C; }
};

// Output positions along one axis; negative or zero where the dilated kernel does not fit. The one place it is written.
PYSERVE_INLINE int64_t conv2d_output_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// y = clamp(conv(x, weight) + bias + residual). bias [K] and residual may be null. mean and var [K], where they are not
// null: the mean and the biased variance of each channel of y (only of kernels that give them, see Also in variants.h;
// they know neither residual nor activation then).
struct Conv2dArgs {
  const void* x;
  const void* weight;
  const void* bias;
  const void* residual;
  void* y;
  const float* packed = nullptr;  // the weights as this variant's Packing lays them out, or null
  float *mean = nullptr, *var = nullptr;

  PYSERVE_INLINE Conv2dArgs without_packed() const { return {x, weight, bias, residual, y}; }
};

// dx = the gradient of x, from `grad` [N][P][Q][K] that the activation's mask has been applied to; or that it is
// applied to as grad is loaded, where y, the forward pass' output, is given (only to kernels that do so, see Also in
// variants.h).
struct Conv2dDgradArgs {
  const void* grad;
  const void* weight;
  const void* y;
  void* dx;
};

// dw [K][R][S][C/groups] = the gradient of weight, likewise; dbias [K] = the sums of the masked grad, null where they
// are not wanted or the kernel has none.
struct Conv2dWgradArgs {
  const void* grad;
  const void* x;
  const void* y;
  void* dw;
  void* dbias;
};

}  // namespace pyserve
