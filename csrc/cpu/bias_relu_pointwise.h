// bias + residual + clamp and its backward, by vectors. float32 sums; float32 and bfloat16 tensors. The bias gradient's
// sums are cut into parts that depend on the problem alone. Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "conv2d_wgrad.h"
#include "convert.h"
#include "gather.h"

namespace pyserve {
namespace {

constexpr int64_t kPointPiece = 1 << 12;  // elements worth a thread's attention
constexpr int64_t kSumRows = 64;          // rows summed before their sum is added to the total: keeps rounding small

// y = clamp(x + bias + residual) for one run; the bias is a vector beside x (kPerElement) or one value.
template <bool kPerElement, class T>
void clamp_run(const T* x, const float* bias, const T* residual, T* y, int64_t count, Clamp clamp) {
  const Vec lo = Vec::set(static_cast<float>(clamp.lo)), hi = Vec::set(static_cast<float>(clamp.hi));
  const Vec one = kPerElement || !bias ? Vec::zero() : Vec::set(*bias);
  for (int64_t i = 0; i < count; i += Vec::kWidth) {
    const int64_t n = count - i;
    const bool part = n < Vec::kWidth;
    const auto load = [=](const auto* from) { return part ? Vec::load(from + i, n) : Vec::load(from + i); };
    Vec value = load(x);
    if (bias) value = value + (kPerElement ? load(bias) : one);
    if (residual) value = value + load(residual);
    value = value.clamp(lo, hi);
    part ? value.store(y + i, n) : value.store(y + i);
  }
}

template <class T>
void pointwise_forward(const BiasReluProblem& p, const BiasReluArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *residual = static_cast<const T*>(args.residual);
  T* y = static_cast<T*>(args.y);
  const float* bias = args.bias ? as_floats(static_cast<const T*>(args.bias), p.channels, pool) : nullptr;
  const bool last = p.inner == 1;
  const int64_t run = !bias ? kPointPiece : last ? p.channels : p.inner;
  const int64_t runs = ceil_div(p.numel(), run);
  pool(runs, most(1, kPointPiece / run), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * run, count = least(run, p.numel() - at);
      const T* beside = residual ? residual + at : nullptr;
      if (bias && !last)
        clamp_run<false>(x + at, bias + i % p.channels, beside, y + at, count, p.clamp);
      else
        clamp_run<true>(x + at, bias, beside, y + at, count, p.clamp);
    }
  });
}

struct Mask {
  Vec lo, hi;
  explicit Mask(Clamp clamp)
      : lo(Vec::set(static_cast<float>(clamp.mask_lo()))), hi(Vec::set(static_cast<float>(clamp.mask_hi()))) {}
};

// The masked gradient at element i, `n` elements to go; written to dx where wanted.
template <class T>
Vec masked_at(const T* grad, const T* y, T* dx, int64_t i, int64_t n, const Mask& mask) {
  const bool part = n < Vec::kWidth;
  Vec value = part ? Vec::load(grad + i, n) : Vec::load(grad + i);
  if (y) value = value.unless_blocked(part ? Vec::load(y + i, n) : Vec::load(y + i), mask.lo, mask.hi);
  if (dx) part ? value.store(dx + i, n) : value.store(dx + i);
  return value;
}

// Channels-last rows [first, last): dx, and their sums added to sums[channels].
template <class T>
void masked_rows(const T* grad, const T* y, T* dx, float* sums, int64_t first, int64_t last, int64_t channels,
                 const Mask& mask) {
  for (int64_t row = first; row < last; row += kSumRows)
    for (int64_t c = 0; c < channels; c += Vec::kWidth) {
      const int64_t n = channels - c;
      Vec sum = Vec::zero();
      for (int64_t r = row; r < least(last, row + kSumRows); ++r)
        sum = sum + masked_at(grad, y, dx, r * channels + c, n, mask);
      if (n < Vec::kWidth)
        (sum + Vec::load(sums + c, n)).store(sums + c, n);
      else
        (sum + Vec::load(sums + c)).store(sums + c);
    }
}

template <class T>
void backward_channels_last(const BiasReluProblem& p, const T* grad, const T* y, T* dx, T* dbias, const Pool& pool) {
  const Mask mask(p.clamp);
  const int64_t pieces = ceil_div(p.outer, kSumRows), parts = least(pieces, kWantedTasks);
  float* sums = allocate_floats(pool, parts * p.channels);
  pool(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      float* own = sums + part * p.channels;
      fill_zero(own, p.channels);
      masked_rows(grad, y, dx, own, pieces * part / parts * kSumRows,
                  least(p.outer, pieces * (part + 1) / parts * kSumRows), p.channels, mask);
    }
  });
  if (dbias) add_parts(sums, parts, p.channels, dbias, pool);
}

// [outer][channels][inner]: one channel per task.
template <class T>
void backward_channels_first(const BiasReluProblem& p, const T* grad, const T* y, T* dx, T* dbias, const Pool& pool) {
  const Mask mask(p.clamp);
  pool(p.channels, most(1, kPointPiece / (p.outer * p.inner)), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      float total = 0;
      for (int64_t outer = 0; outer < p.outer; ++outer) {
        Vec sum = Vec::zero();
        for (int64_t i = 0; i < p.inner; i += Vec::kWidth)
          sum = sum + masked_at(grad, y, dx, (outer * p.channels + c) * p.inner + i, p.inner - i, mask);
        total += sum.sum();
      }
      if (dbias) store_one(total, dbias + c);
    }
  });
}

template <class T>
void pointwise_backward(const BiasReluProblem& p, const BiasReluBackwardArgs& args, const Pool& pool) {
  const T *grad = static_cast<const T*>(args.grad), *y = static_cast<const T*>(args.y);
  T *dx = static_cast<T*>(args.dx), *dbias = static_cast<T*>(args.dbias);
  if (p.inner == 1) return backward_channels_last(p, grad, y, dx, dbias, pool);
  backward_channels_first(p, grad, y, dx, dbias, pool);
}

}  // namespace
}  // namespace pyserve
