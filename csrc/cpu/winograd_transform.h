// The transforms of Winograd's minimal filtering, Lavin and Gray, "Fast algorithms for convolutional neural networks",
// 2015: F(4, 3) makes four outputs of a three-tap filter with six products instead of twelve,
//
//     y = Aᵀ [(G w) ∘ (Bᵀ d)],   in two dimensions   Y = Aᵀ [(G W Gᵀ) ∘ (Bᵀ D B)] A.
//
// The interpolation points are 0, ±a, ±b, ∞ with a = √½, b = √2: no constant is far from one, which halves the rounding
// error of the usual 0, ±1, ±2 (see Barabasz et al., "Error analysis and improving the accuracy of Winograd
// convolution", 2020). The scales 1 / Π (point − other points) go into Aᵀ, where they cost nothing, so that F(3, 3),
// for sizes that four does not divide, can share the transformed weights: it leaves out the point −b, index 4.
//
// A scheme is one dimension: Bᵀ, G and Aᵀ as functions of vectors; `step` is the distance of the results. Both schemes
// come with four and with three outputs, for sizes that four does not divide; three leave some points out. A filter has
// six transformed weights per dimension in both.
// Needs Vec; local to each including file.
#pragma once
#include <cstdint>

namespace pyserve {
namespace {

constexpr int kWeights = 6;
constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;
constexpr float kA2 = 0.5f, kB2 = 2.0f, kA2B2 = 2.5f;  // a², b², a² + b²; a·b = 1

#define PYSERVE_TRANSFORM __attribute__((always_inline)) static inline

PYSERVE_TRANSFORM Vec constant(float value) { return Vec::set(value); }

// Five inputs at the points 0, a, −a, b, ∞.
PYSERVE_TRANSFORM void transform_five(Vec d0, Vec d1, Vec d2, Vec d3, Vec d4, Vec* o, int step, Vec* infinity) {
  const Vec odd = d3.fnma(constant(kA2), d1), even = d2.fnma(constant(kA2), d0);
  const Vec high = d3.fnma(constant(kB), d2), low = d2.fnma(constant(kB), d1);
  o[0] = odd.fnma(constant(kB), even);
  o[step] = high.fma(constant(kA), low);
  o[2 * step] = high.fnma(constant(kA), low);
  o[3 * step] = odd;
  *infinity = d4.fnma(constant(kA2), d2).fnma(constant(kB), odd);
}

// Σ point^power · m / Π (point − other points) over those points but ∞.
template <int kPower>
PYSERVE_TRANSFORM Vec sum_of_four(Vec m0, Vec m1, Vec m2, Vec m3) {
  constexpr float kZero = 1 / (kA2 * kB), kPlus = 1 / (2 * kA2 * (kA - kB)), kMinus = -1 / (2 * kA2 * (kA + kB));
  constexpr float kOuter = 1 / (kB * (kB2 - kA2));
  constexpr float kPowerA = kPower == 0 ? 1 : kPower == 1 ? kA : kPower == 2 ? kA2 : kA2 * kA;
  constexpr float kPowerB = kPower == 0 ? 1 : kPower == 1 ? kB : kPower == 2 ? kB2 : kB2 * kB;
  const Vec first = kPower == 0 ? (constant(kZero) * m0).fma(constant(kPlus), m1) : constant(kPlus * kPowerA) * m1;
  return first.fma(constant(kPower % 2 == 0 ? kMinus * kPowerA : -kMinus * kPowerA), m2)
      .fma(constant(kOuter * kPowerB), m3);
}

// The transpose of sum_of_four: each y to the points 0, a, −a, b.
template <int kOutputs>
PYSERVE_TRANSFORM void expand_four(const Vec* y, Vec* o, int step) {
  constexpr float kZero = 1 / (kA2 * kB), kPlus = 1 / (2 * kA2 * (kA - kB)), kMinus = -1 / (2 * kA2 * (kA + kB));
  constexpr float kOuter = 1 / (kB * (kB2 - kA2));
  const Vec even = y[0].fma(constant(kA2), y[2]);
  const Vec odd = kOutputs == 4 ? y[1].fma(constant(kA2), y[3]) : y[1];
  const Vec outer = y[0].fma(constant(kB), y[1]).fma(constant(kB2), y[2]);
  o[0] = constant(kZero) * y[0];
  o[step] = constant(kPlus) * even.fma(constant(kA), odd);
  o[2 * step] = constant(kMinus) * even.fnma(constant(kA), odd);
  o[3 * step] = constant(kOuter) * (kOutputs == 4 ? outer.fma(constant(kB2 * kB), y[3]) : outer);
}

// Stride 1: F(4, 3) at the points 0, a, −a, b, −b, ∞; F(3, 3) without −b.
struct StrideOne {
  static constexpr int kPoints = 6, kStride = 1;
  static constexpr int weight_of(int64_t point) { return static_cast<int>(point); }
  static constexpr int64_t last_point(int64_t weight) { return weight; }  // of those with this weight
  static constexpr int kParts = 1, kPart[2] = {0, 6};                     // points that winograd_few.h does at a time
  static constexpr int inputs(int outputs) { return outputs + 2; }
  static constexpr bool has(int outputs, int64_t point) { return outputs == 4 || point != 4; }

  template <int kOutputs>
  PYSERVE_TRANSFORM void input(const Vec* d, Vec* o, int step) {
    if constexpr (kOutputs == 4) {
      const Vec outer_even = d[4].fnma(constant(kB2), d[2]), outer_odd = d[3].fnma(constant(kB2), d[1]);
      const Vec inner_even = d[4].fnma(constant(kA2), d[2]), inner_odd = d[3].fnma(constant(kA2), d[1]);
      o[0] = (d[0] + d[4]).fnma(constant(kA2B2), d[2]);
      o[step] = outer_even.fma(constant(kA), outer_odd);
      o[2 * step] = outer_even.fnma(constant(kA), outer_odd);
      o[3 * step] = inner_even.fma(constant(kB), inner_odd);
      o[4 * step] = inner_even.fnma(constant(kB), inner_odd);
      o[5 * step] = (d[1] + d[5]).fnma(constant(kA2B2), d[3]);
    } else {
      transform_five(d[0], d[1], d[2], d[3], d[4], o, step, o + 5 * step);
    }
  }

  template <int kWeight>
  PYSERVE_TRANSFORM Vec weight(Vec w0, Vec w1, Vec w2) {
    if (kWeight == 0) return w0;
    if (kWeight == 5) return w2;
    const Vec even = w0.fma(constant(kWeight < 3 ? kA2 : kB2), w2), scale = constant(kWeight < 3 ? kA : kB);
    return kWeight % 2 == 1 ? even.fma(scale, w1) : even.fnma(scale, w1);
  }

  template <int kOutputs>
  PYSERVE_TRANSFORM void output(const Vec* m, Vec* o, int step) {
    if constexpr (kOutputs == 4) {
      constexpr float kInner = 1 / (2 * kA2 * (kA2 - kB2)), kOuter = 1 / (2 * kB2 * (kB2 - kA2));
      const Vec inner_even = m[1] + m[2], inner_odd = m[1] - m[2];
      const Vec outer_even = m[3] + m[4], outer_odd = m[3] - m[4];
      o[0] = m[0].fma(constant(kInner), inner_even).fma(constant(kOuter), outer_even);
      o[step] = (constant(kOuter * kB) * outer_odd).fma(constant(kInner * kA), inner_odd);
      o[2 * step] = (constant(kOuter * kB2) * outer_even).fma(constant(kInner * kA2), inner_even);
      o[3 * step] = m[5].fma(constant(kOuter * kB2 * kB), outer_odd).fma(constant(kInner * kA2 * kA), inner_odd);
    } else {
      o[0] = sum_of_four<0>(m[0], m[1], m[2], m[3]);
      o[step] = sum_of_four<1>(m[0], m[1], m[2], m[3]);
      o[2 * step] = sum_of_four<2>(m[0], m[1], m[2], m[3]) + m[5];
    }
  }

  // A y: the transpose of `output`.
  template <int kOutputs>
  PYSERVE_TRANSFORM void expand(const Vec* y, Vec* o, int step) {
    if constexpr (kOutputs == 4) {
      constexpr float kInner = 1 / (2 * kA2 * (kA2 - kB2)), kOuter = 1 / (2 * kB2 * (kB2 - kA2));
      const Vec inner_even = (constant(kInner) * y[0]).fma(constant(kInner * kA2), y[2]);
      const Vec inner_odd = (constant(kInner * kA) * y[1]).fma(constant(kInner * kA2 * kA), y[3]);
      const Vec outer_even = (constant(kOuter) * y[0]).fma(constant(kOuter * kB2), y[2]);
      const Vec outer_odd = (constant(kOuter * kB) * y[1]).fma(constant(kOuter * kB2 * kB), y[3]);
      o[0] = y[0];
      o[step] = inner_even + inner_odd;
      o[2 * step] = inner_even - inner_odd;
      o[3 * step] = outer_even + outer_odd;
      o[4 * step] = outer_even - outer_odd;
      o[5 * step] = y[3];
    } else {
      expand_four<kOutputs>(y, o, step);
      o[5 * step] = y[2];
    }
  }

  // Gᵀ u: the transpose of `weight`.
  PYSERVE_TRANSFORM void weight_gradient(const Vec* u, Vec* w, int step) {
    const Vec inner_even = u[1] + u[2], outer_even = u[3] + u[4];
    w[0] = u[0] + inner_even + outer_even;
    w[step] = (constant(kA) * (u[1] - u[2])).fma(constant(kB), u[3] - u[4]);
    w[2 * step] = u[5].fma(constant(kA2), inner_even).fma(constant(kB2), outer_even);
  }
};

// Stride 2 in its two phases: the even inputs meet taps 0 and 2, which is F(4, 2) at the points 0, a, −a, b, ∞ (F(3, 2)
// without b); the odd ones meet tap 1, a product each, all with one weight. 9 instead of 12 products per dimension.
struct StrideTwo {
  static constexpr int kPoints = 9, kStride = 2;
  static constexpr int weight_of(int64_t point) { return point < 5 ? static_cast<int>(point) : 5; }
  static constexpr int64_t last_point(int64_t weight) { return weight < 5 ? weight : 8; }
  static constexpr int kParts = 2, kPart[3] = {0, 5, 9};
  static constexpr int inputs(int outputs) { return 2 * outputs + 1; }
  static constexpr bool has(int outputs, int64_t point) { return outputs == 4 || (point != 3 && point != 8); }

  template <int kOutputs>
  PYSERVE_TRANSFORM void input(const Vec* d, Vec* o, int step) {
    if constexpr (kOutputs == 4) {
      transform_five(d[0], d[2], d[4], d[6], d[8], o, step, o + 4 * step);
    } else {
      o[0] = d[4].fnma(constant(kA2), d[0]);
      o[step] = d[4].fma(constant(kA), d[2]);
      o[2 * step] = d[4].fnma(constant(kA), d[2]);
      o[4 * step] = d[6].fnma(constant(kA2), d[2]);
    }
    for (int i = 0; i < kOutputs; ++i) o[(5 + i) * step] = d[2 * i + 1];
  }

  template <int kWeight>
  PYSERVE_TRANSFORM Vec weight(Vec w0, Vec w1, Vec w2) {
    if (kWeight == 5) return w1;
    if (kWeight == 0) return w0;
    if (kWeight == 4) return w2;
    return kWeight == 1   ? w0.fma(constant(kA), w2)
           : kWeight == 2 ? w0.fnma(constant(kA), w2)
                          : w0.fma(constant(kB), w2);
  }

  template <int kOutputs>
  PYSERVE_TRANSFORM void output(const Vec* m, Vec* o, int step) {
    if constexpr (kOutputs == 4) {
      o[0] = sum_of_four<0>(m[0], m[1], m[2], m[3]) + m[5];
      o[step] = sum_of_four<1>(m[0], m[1], m[2], m[3]) + m[6];
      o[2 * step] = sum_of_four<2>(m[0], m[1], m[2], m[3]) + m[7];
      o[3 * step] = sum_of_four<3>(m[0], m[1], m[2], m[3]) + m[4] + m[8];
    } else {
      const Vec even = m[1] + m[2], odd = m[1] - m[2];
      o[0] = m[5].fma(constant(-1 / kA2), m[0]).fma(constant(1 / (2 * kA2)), even);
      o[step] = m[6].fma(constant(1 / (2 * kA)), odd);
      o[2 * step] = (m[4] + m[7]).fma(constant(0.5f), even);
    }
  }

  template <int kOutputs>
  PYSERVE_TRANSFORM void expand(const Vec* y, Vec* o, int step) {
    if constexpr (kOutputs == 4) {
      expand_four<kOutputs>(y, o, step);
    } else {
      const Vec even = (constant(1 / (2 * kA2)) * y[0]).fma(constant(0.5f), y[2]), odd = constant(1 / (2 * kA)) * y[1];
      o[0] = constant(-1 / kA2) * y[0];
      o[step] = even + odd;
      o[2 * step] = even - odd;
    }
    o[4 * step] = y[kOutputs - 1];
    for (int i = 0; i < kOutputs; ++i) o[(5 + i) * step] = y[i];
  }

  PYSERVE_TRANSFORM void weight_gradient(const Vec* u, Vec* w, int step) {
    w[0] = u[0] + u[1] + u[2] + u[3];
    w[step] = u[5];
    w[2 * step] = u[4].fma(constant(kA), u[1] - u[2]).fma(constant(kB), u[3]);
  }
};

#undef PYSERVE_TRANSFORM

}  // namespace
}  // namespace pyserve
