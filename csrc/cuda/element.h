// Element types in CUDA kernels, and the type that their sums are kept in.
#pragma once
#include <type_traits>

#include "device.h"

namespace pyserve {

struct BFloat16 {
  uint16_t bits;
};

template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

PYSERVE_DEVICE float widen(float v) { return v; }
PYSERVE_DEVICE double widen(double v) { return v; }
PYSERVE_DEVICE float widen(BFloat16 v) { return device::float_from_bf16(v.bits); }

template <class T>
PYSERVE_DEVICE T narrow(Accumulator<T> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return {device::bf16_from_float(v)};
  } else {
    return v;
  }
}

// NaN stays NaN: both comparisons are false for it.
template <class Acc>
PYSERVE_DEVICE Acc clamp(Acc v, Acc lo, Acc hi) {
  return v < lo ? lo : v > hi ? hi : v;
}

// Sizes are 64-bit, nearly always small, and a GPU divides 32-bit numbers several times faster. For a ≥ 0, b > 0.
PYSERVE_DEVICE int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// Calls f with a value of the element type that the problem names.
template <class F>
void with_element(DType dtype, F&& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::bf16) return f(BFloat16{});
  f(double{});
}

}  // namespace pyserve
