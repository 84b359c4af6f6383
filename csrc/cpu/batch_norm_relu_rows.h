// BatchNorm with residual and activation, and its backward, by vectors of channels over rows of a channels-last tensor.
//
// forward:   one pass for the statistics (in training), one that normalises, adds, clamps and writes.
// backward:  one pass for the sums Σ g and Σ g·(x − mean) over the masked gradient g, one that writes dx.
//
// Statistics are those of blocks of rows, each around the mean of the rows before it, merged as Chan, Golub and
// LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979: as exact as two passes.
// Parts depend on the problem alone: the result does not depend on the number of threads. float32 sums; float32 and
// bfloat16 tensors. Needs Vec; local to each including file.
#pragma once
#include <cmath>

#include "../variants.h"
#include "bias_relu_pointwise.h"

namespace pyserve {
namespace {

constexpr int64_t kNormRows = 64;  // per block
constexpr int64_t kNormParts = 32;

inline int64_t norm_parts(const BatchNormProblem& p) { return least(ceil_div(p.rows, kNormRows), kNormParts); }

// f(part, first row, last row): whole blocks of rows.
template <class F>
void for_each_part(const BatchNormProblem& p, const Pool& pool, F&& f) {
  const int64_t blocks = ceil_div(p.rows, kNormRows), parts = norm_parts(p);
  pool(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      f(i, blocks * i / parts * kNormRows, least(p.rows, blocks * (i + 1) / parts * kNormRows));
  });
}

// f(first channel, the number left where fewer than a vector, else the vector's width).
template <class F>
void for_each_vector(int64_t channels, F&& f) {
  for (int64_t c = 0; c < channels; c += Vec::kWidth) f(c, least(Vec::kWidth, channels - c));
}

template <class T>
__attribute__((always_inline)) inline Vec load_some(const T* from, int64_t n) {
  return n < Vec::kWidth ? Vec::load(from, n) : Vec::load(from);
}

template <class T>
__attribute__((always_inline)) inline void store_some(Vec value, T* to, int64_t n) {
  n < Vec::kWidth ? value.store(to, n) : value.store(to);
}

// ---------------------------------------------------------------------------------------------------- statistics

// Mean and summed squares of the distances from it, of rows [first, last): mean[channels], m2[channels].
template <class T>
void collect_rows(const BatchNormProblem& p, const T* x, int64_t first, int64_t last, float* mean, float* m2) {
  for (int64_t row = first; row < last; row += kNormRows) {
    const int64_t end = least(last, row + kNormRows);
    const float before = static_cast<float>(row - first), count = static_cast<float>(end - row);
    const Vec per_row = Vec::set(1 / count), share = Vec::set(count / (before + count));
    const Vec between = Vec::set(before * count / (before + count));
    for_each_vector(p.channels, [&](int64_t c, int64_t n) {
      const Vec around = load_some(mean + c, n);
      Vec sum = Vec::zero(), squares = Vec::zero();
      for (int64_t r = row; r < end; ++r) {
        const Vec d = load_some(x + r * p.channels + c, n) - around;
        sum = sum + d, squares = squares.fma(d, d);
      }
      const Vec distance = sum * per_row;  // of this block's mean from that of the rows before
      store_some(around.fma(distance, share), mean + c, n);
      const Vec own = squares.fnma(sum, distance);
      store_some((load_some(m2 + c, n) + own).fma(distance * distance, between), m2 + c, n);
    });
  }
}

// Mean and biased variance over all rows.
template <class T>
void collect(const BatchNormProblem& p, const T* x, float* mean, float* var, const Pool& pool) {
  const int64_t parts = norm_parts(p), blocks = ceil_div(p.rows, kNormRows);
  float *means = allocate_floats(pool, parts * p.channels), *m2s = allocate_floats(pool, parts * p.channels);
  for_each_part(p, pool, [&](int64_t part, int64_t first, int64_t last) {
    float *own = means + part * p.channels, *own_m2 = m2s + part * p.channels;
    widen_row(x + first * p.channels, own, p.channels);  // any value near the mean will do to start from
    fill_zero(own_m2, p.channels);
    collect_rows(p, x, first, last, own, own_m2);
  });
  for (int64_t c = 0; c < p.channels; ++c) {
    double count = 0, total_mean = 0, total_m2 = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = blocks * part / parts * kNormRows;
      const double n = static_cast<double>(least(p.rows, blocks * (part + 1) / parts * kNormRows) - first);
      const double distance = means[part * p.channels + c] - total_mean;
      total_m2 += m2s[part * p.channels + c] + distance * distance * count * n / (count + n);
      total_mean += distance * n / (count + n);
      count += n;
    }
    mean[c] = static_cast<float>(total_mean), var[c] = static_cast<float>(total_m2 / count);
  }
}

// ---------------------------------------------------------------------------------------------------- forward

// Per channel y = x · scale + shift.
struct NormLine {
  float *scale, *shift;
  NormLine(const BatchNormProblem& p, const float* weight, const float* bias, const float* mean, const float* var,
           const Pool& pool)
      : scale(allocate_floats(pool, p.channels)), shift(allocate_floats(pool, p.channels)) {
    for (int64_t c = 0; c < p.channels; ++c) {
      const float inverse = 1 / std::sqrt(var[c] + static_cast<float>(p.eps));
      scale[c] = weight ? inverse * weight[c] : inverse;
      shift[c] = (bias ? bias[c] : 0) - mean[c] * scale[c];
    }
  }
  __attribute__((always_inline)) Vec at(Vec x, int64_t c, int64_t n) const {
    return load_some(shift + c, n).fma(x, load_some(scale + c, n));
  }
};

template <class T>
void norm_forward(const BatchNormProblem& p, const BatchNormReluArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  float *mean = static_cast<float*>(args.mean), *var = static_cast<float*>(args.var);
  if (p.training) collect(p, x, mean, var, pool);
  if (y == nullptr) return;
  const NormLine line(p, static_cast<const float*>(args.weight), static_cast<const float*>(args.bias), mean, var, pool);
  const Vec lo = Vec::set(static_cast<float>(p.clamp.lo)), hi = Vec::set(static_cast<float>(p.clamp.hi));
  for_each_part(p, pool, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      for_each_vector(p.channels, [&](int64_t c, int64_t n) {
        const int64_t at = row * p.channels + c;
        Vec value = line.at(load_some(x + at, n), c, n);
        if (residual) value = value + load_some(residual + at, n);
        store_some(value.clamp(lo, hi), y + at, n);
      });
  });
}

// ---------------------------------------------------------------------------------------------------- backward

template <class T>
struct NormBackward {
  const BatchNormProblem& p;
  const T *grad, *y, *x;
  const float *mean, *var;
  NormLine line;
  Mask mask;

  NormBackward(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args, const Pool& pool)
      : p(p),
        grad(static_cast<const T*>(args.grad)),
        y(static_cast<const T*>(args.y)),
        x(static_cast<const T*>(args.x)),
        mean(static_cast<const float*>(args.mean)),
        var(static_cast<const float*>(args.var)),
        line(p, static_cast<const float*>(args.weight), static_cast<const float*>(args.bias), mean, var, pool),
        mask(p.clamp) {}

  // The gradient where the activation passed, else 0.
  __attribute__((always_inline)) Vec masked(int64_t at, int64_t c, int64_t n, Vec x_at) const {
    const Vec value = load_some(grad + at, n);
    if (!p.clamp.active()) return value;
    return value.unless_blocked(y ? load_some(y + at, n) : line.at(x_at, c, n), mask.lo, mask.hi);
  }

  // Σ g and Σ g·(x − mean) of rows [first, last), added to sums[2][channels]; g is written where `out` wants it.
  void add_sums(int64_t first, int64_t last, float* sums, T* out) const {
    for (int64_t row = first; row < last; row += kNormRows)
      for_each_vector(p.channels, [&](int64_t c, int64_t n) {
        const Vec center = load_some(mean + c, n);
        Vec sum = Vec::zero(), with_x = Vec::zero();
        for (int64_t r = row; r < least(last, row + kNormRows); ++r) {
          const int64_t at = r * p.channels + c;
          const Vec x_at = load_some(x + at, n), g = masked(at, c, n, x_at);
          if (out) store_some(g, out + at, n);
          sum = sum + g, with_x = with_x.fma(g, x_at - center);
        }
        store_some(load_some(sums + c, n) + sum, sums + c, n);
        store_some(load_some(sums + p.channels + c, n) + with_x, sums + p.channels + c, n);
      });
  }
};

// dx = scale · (g − Σ g / rows − (x − mean) / (var + eps) · Σ g·(x − mean) / rows); without the sums where the
// statistics were given.
template <class T>
void write_dx(const NormBackward<T>& b, const float* sums, const T* masked, T* dx, const Pool& pool) {
  const BatchNormProblem& p = b.p;
  float *constant_part = zero_row<float>(pool, p.channels), *of_x = zero_row<float>(pool, p.channels);
  for (int64_t c = 0; p.training && c < p.channels; ++c) {
    const double rows = static_cast<double>(p.rows);
    constant_part[c] = static_cast<float>(-sums[c] / rows);
    of_x[c] = static_cast<float>(-sums[p.channels + c] / rows / (static_cast<double>(b.var[c]) + p.eps));
  }
  for_each_part(p, pool, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row)
      for_each_vector(p.channels, [&](int64_t c, int64_t n) {
        const int64_t at = row * p.channels + c;
        const Vec x_at = load_some(b.x + at, n);
        const Vec g = masked ? load_some(masked + at, n) : b.masked(at, c, n, x_at);
        const Vec line = load_some(constant_part + c, n).fma(x_at - load_some(b.mean + c, n), load_some(of_x + c, n));
        store_some((g + line) * load_some(b.line.scale + c, n), dx + at, n);
      });
  });
}

template <class T>
void norm_backward(const BatchNormProblem& p, const BatchNormReluBackwardArgs& args, const Pool& pool) {
  const NormBackward<T> b(p, args, pool);
  const int64_t parts = norm_parts(p), width = 2 * p.channels;
  float *all = allocate_floats(pool, parts * width), *sums = allocate_floats(pool, width);
  T* masked = static_cast<T*>(args.dresidual);
  for_each_part(p, pool, [&](int64_t part, int64_t first, int64_t last) {
    fill_zero(all + part * width, width);
    b.add_sums(first, last, all + part * width, masked);
  });
  add_parts(all, parts, width, sums, pool);
  for (int64_t c = 0; c < p.channels; ++c) {
    const float inverse = 1 / std::sqrt(b.var[c] + static_cast<float>(p.eps));
    if (args.dbias) static_cast<float*>(args.dbias)[c] = sums[c];
    if (args.dweight) static_cast<float*>(args.dweight)[c] = sums[p.channels + c] * inverse;
  }
  if (args.dx) write_dx(b, sums, masked, static_cast<T*>(args.dx), pool);
}

}  // namespace
}  // namespace pyserve
