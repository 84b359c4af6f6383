// Element types in CUDA kernels, and the type that their sums are kept in.
#pragma once
#include <type_traits>

#include "../conv2d.h"
#include "device.h"

namespace pyserve {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

PYSERVE_DEVICE float widen(float v) { return v; }
PYSERVE_DEVICE double widen(double v) { return v; }
PYSERVE_DEVICE float widen(BFloat16 v) { return device::float_from_bf16(v.bits); }
PYSERVE_DEVICE float widen(Float16 v) { return device::float_from_f16(v.bits); }

template <class T>
PYSERVE_DEVICE T narrow(Accumulator<T> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {device::bf16_from_float(v)};
  } else if constexpr (std::is_same_v<T, Float16>) {
    return {device::f16_from_float(v)};
  } else {
    return v;
  }
}

// NaN stays NaN: both comparisons are false for it.
template <class Acc>
PYSERVE_DEVICE Acc clamp(Acc v, Acc lo, Acc hi) {
  return v < lo ? lo : v > hi ? hi : v;
}

// Calls f with a value of the element type that the problem names.
template <class F>
void with_element(DType dtype, F&& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::bf16) return f(BFloat16{});
  if (dtype == DType::f16) return f(Float16{});
  f(double{});
}

// Likewise of the types that tensor cores take.
template <class F>
void with_matrix_element(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f(BFloat16{});
  if (dtype == DType::f16) return f(Float16{});
  f(float{});
}

}  // namespace pyserve
