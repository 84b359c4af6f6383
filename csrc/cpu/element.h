// bfloat16 in scalar code. For the plain (scalar) kernels; the vector kernels convert in registers.
#pragma once
#include <cstdint>
#include <cstring>

namespace pyserve {

struct BFloat16 {
  uint16_t bits;
};

inline double widen(float v) { return v; }
inline double widen(double v) { return v; }
inline double widen(BFloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

template <class T>
T narrow(double v) {
  return static_cast<T>(v);
}

// Round to nearest, ties to even; NaN stays NaN.
template <>
inline BFloat16 narrow<BFloat16>(double v) {
  const float f = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof f);
  if (f != f) return {static_cast<uint16_t>((bits >> 16) | 0x0040)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// NaN stays NaN: both comparisons are false for it.
inline double clamp(double v, double lo, double hi) { return v < lo ? lo : v > hi ? hi : v; }

inline bool blocked(double y, double mask_lo, double mask_hi) { return y <= mask_lo || y >= mask_hi; }

}  // namespace pyserve
