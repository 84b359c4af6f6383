// The transforms of Winograd's minimal filtering, Lavin and Gray, "Fast algorithms for convolutional neural networks",
// 2015: F(4, 3) makes four outputs of a three-tap filter with six products instead of twelve,
//
//     y = Aᵀ [(G w) ∘ (Bᵀ d)],   in two dimensions   Y = Aᵀ [(G W Gᵀ) ∘ (Bᵀ D B)] A.
//
// The interpolation points are 0, ±a, ±b, ∞ with a = √½, b = √2: no constant is far from one, which halves the rounding
// error of the usual 0, ±1, ±2 (see Barabasz et al., "Error analysis and improving the accuracy of Winograd
// convolution", 2020). The scales 1 / Π (point − other points) go into Aᵀ, where they cost nothing, so that F(3, 3),
// for sizes that four does not divide, can share the transformed weights: it leaves out the point −b, index 4.
// Each function is one dimension; `step` is the distance of its results. Needs Vec; local to each including file.
#pragma once
#include <cstdint>

namespace pyserve {
namespace {

constexpr int kPoints = 6;                    // per dimension
constexpr int kSpectrum = kPoints * kPoints;  // products per tile, channel and filter
constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;
constexpr float kA2 = 0.5f, kB2 = 2.0f, kA2B2 = 2.5f;  // a², b², a² + b²; a·b = 1

// Bᵀ d: kOutputs + 2 inputs to six points (F(3) leaves o[4·step] as it is).
template <int kOutputs>
__attribute__((always_inline)) inline void transform_input(const Vec* d, Vec* o, int step) {
  const auto c = [](float value) { return Vec::set(value); };
  if (kOutputs == 4) {
    const Vec outer_even = d[4].fnma(c(kB2), d[2]), outer_odd = d[3].fnma(c(kB2), d[1]);
    const Vec inner_even = d[4].fnma(c(kA2), d[2]), inner_odd = d[3].fnma(c(kA2), d[1]);
    o[0] = (d[0] + d[4]).fnma(c(kA2B2), d[2]);
    o[step] = outer_even.fma(c(kA), outer_odd);
    o[2 * step] = outer_even.fnma(c(kA), outer_odd);
    o[3 * step] = inner_even.fma(c(kB), inner_odd);
    o[4 * step] = inner_even.fnma(c(kB), inner_odd);
    o[5 * step] = (d[1] + d[5]).fnma(c(kA2B2), d[3]);
  } else {
    const Vec inner_odd = d[3].fnma(c(kA2), d[1]), inner_even = d[2].fnma(c(kA2), d[0]);
    const Vec high = d[3].fnma(c(kB), d[2]), low = d[2].fnma(c(kB), d[1]);
    o[0] = inner_odd.fnma(c(kB), inner_even);
    o[step] = high.fma(c(kA), low);
    o[2 * step] = high.fnma(c(kA), low);
    o[3 * step] = inner_odd;
    o[5 * step] = d[4].fnma(c(kA2), d[2]).fnma(c(kB), inner_odd);
  }
}

// G w at one point: three taps in.
template <int kPoint>
__attribute__((always_inline)) inline Vec transform_weights(Vec w0, Vec w1, Vec w2) {
  const auto c = [](float value) { return Vec::set(value); };
  if (kPoint == 0) return w0;
  if (kPoint == 5) return w2;
  const Vec even = w0.fma(c(kPoint < 3 ? kA2 : kB2), w2), odd_scale = c(kPoint < 3 ? kA : kB);
  return kPoint % 2 == 1 ? even.fma(odd_scale, w1) : even.fnma(odd_scale, w1);
}

// Aᵀ m: six points to kOutputs outputs (F(3) does not read m[4]).
template <int kOutputs>
__attribute__((always_inline)) inline void transform_output(const Vec* m, Vec* o, int step) {
  const auto c = [](float value) { return Vec::set(value); };
  if (kOutputs == 4) {
    constexpr float kInner = 1 / (2 * kA2 * (kA2 - kB2)), kOuter = 1 / (2 * kB2 * (kB2 - kA2));
    const Vec inner_even = m[1] + m[2], inner_odd = m[1] - m[2];
    const Vec outer_even = m[3] + m[4], outer_odd = m[3] - m[4];
    o[0] = m[0].fma(c(kInner), inner_even).fma(c(kOuter), outer_even);
    o[step] = (c(kOuter * kB) * outer_odd).fma(c(kInner * kA), inner_odd);
    o[2 * step] = (c(kOuter * kB2) * outer_even).fma(c(kInner * kA2), inner_even);
    o[3 * step] = m[5].fma(c(kOuter * kB2 * kB), outer_odd).fma(c(kInner * kA2 * kA), inner_odd);
  } else {
    constexpr float kZero = 1 / (kA2 * kB), kPlus = 1 / (2 * kA2 * (kA - kB)), kMinus = -1 / (2 * kA2 * (kA + kB));
    constexpr float kOuter = 1 / (kB * (kB2 - kA2));
    o[0] = (c(kZero) * m[0]).fma(c(kPlus), m[1]).fma(c(kMinus), m[2]).fma(c(kOuter), m[3]);
    o[step] = (c(kPlus * kA) * m[1]).fma(c(-kMinus * kA), m[2]).fma(c(kOuter * kB), m[3]);
    o[2 * step] = m[5].fma(c(kPlus * kA2), m[1]).fma(c(kMinus * kA2), m[2]).fma(c(kOuter * kB2), m[3]);
  }
}

}  // namespace
}  // namespace pyserve
