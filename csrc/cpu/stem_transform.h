// The one-dimensional Winograd scheme of first layers: four outputs of 7 taps with stride 2, in its phases. The even
// inputs meet four taps, which is F(4, 4) at the points 0, ±½, ±1, −2, ∞, the odd ones three, which is F(4, 3) as in
// winograd_transform.h. 13 instead of 28 products. Needs Vec; local to each including file.
#pragma once
#include <cstdint>

#include "winograd_transform.h"

namespace pyserve {
namespace {

struct StemSeven {
  static constexpr int kTaps = 7, kStride = 2, kPoints = 13;

  __attribute__((always_inline)) static void weights(const Vec* w, Vec* o) {
    // The scales 1 / Π (point − other points), here with the weights: symmetric points then share sums in `output`.
    const auto at = [w](float point, float scale) {
      return constant(scale) * w[0].fma(constant(point), w[2])
                                   .fma(constant(point * point), w[4])
                                   .fma(constant(point * point * point), w[6]);
    };
    o[0] = at(0, 2);
    o[1] = at(0.5f, -16.0f / 15);
    o[2] = at(-0.5f, -16.0f / 9);
    o[3] = at(1, 2.0f / 9);
    o[4] = at(-1, 2.0f / 3);
    o[5] = at(-2, -2.0f / 45);
    o[6] = w[6];
    o[7] = StrideOne::weight<0>(w[1], w[3], w[5]);
    o[8] = StrideOne::weight<1>(w[1], w[3], w[5]);
    o[9] = StrideOne::weight<2>(w[1], w[3], w[5]);
    o[10] = StrideOne::weight<3>(w[1], w[3], w[5]);
    o[11] = StrideOne::weight<4>(w[1], w[3], w[5]);
    o[12] = StrideOne::weight<5>(w[1], w[3], w[5]);
  }

  __attribute__((always_inline)) static void input(const Vec* d, Vec* o) {
    const auto c = [](float value) { return constant(value); };
    const Vec e[7] = {d[0], d[2], d[4], d[6], d[8], d[10], d[12]};
    // Products of (x − point) over the other points, from (x² − ¼)(x² − 1) and from x(x² − square)(x + 2).
    const auto quartic = [&](int i) { return e[i + 4].fnma(c(1.25f), e[i + 2]).fma(c(0.25f), e[i]); };
    const auto cubic = [&](int i, float square) { return e[i + 3].fnma(c(square), e[i + 1]); };
    const Vec q0 = quartic(0), q1 = quartic(1), q2 = quartic(2);
    const Vec one[3] = {cubic(0, 1), cubic(1, 1), cubic(2, 1)};
    const Vec half[3] = {cubic(0, 0.25f), cubic(1, 0.25f), cubic(2, 0.25f)};
    const Vec one_low = one[1].fma(c(2), one[0]), one_high = one[2].fma(c(2), one[1]);
    const Vec half_low = half[1].fma(c(2), half[0]), half_high = half[2].fma(c(2), half[1]);
    o[0] = q1.fma(c(2), q0);
    o[1] = one_high.fma(c(0.5f), one_low);
    o[2] = one_high.fnma(c(0.5f), one_low);
    o[3] = half_high + half_low;
    o[4] = half_high - half_low;
    o[5] = q1;
    o[6] = q2.fma(c(2), q1);
    const Vec odd[6] = {d[1], d[3], d[5], d[7], d[9], d[11]};
    StrideOne::input<4>(odd, o + 7, 1);
  }

  __attribute__((always_inline)) static void output(const Vec* m, Vec* o) {
    const auto c = [](float value) { return constant(value); };
    StrideOne::output<4>(m + 7, o, 1);
    const Vec half_even = m[1] + m[2], half_odd = m[1] - m[2], one_even = m[3] + m[4], one_odd = m[3] - m[4];
    o[0] = o[0] + (m[0] + half_even) + (one_even + m[5]);
    o[1] = (o[1] + one_odd).fma(c(0.5f), half_odd).fnma(c(2), m[5]);
    o[2] = (o[2] + one_even).fma(c(0.25f), half_even).fma(c(4), m[5]);
    o[3] = (o[3] + one_odd).fma(c(0.125f), half_odd).fnma(c(8), m[5]) + m[6];
  }
};

}  // namespace
}  // namespace pyserve
