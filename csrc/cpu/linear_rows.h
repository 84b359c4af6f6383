// A fully connected layer at the speed of reading its weights: each of them is read once for up to kInputs inputs, in
// the layout that it has. What large batches would gain from packed weights is little beside the convolutions.
// float32 sums; float32 and bfloat16. Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "convert.h"
#include "prefetch.h"

namespace pyserve {
namespace {

constexpr int kInputs = Vec::kMostVectors * 2;  // inputs per pass over the weights
constexpr int kOutputs = 2;                     // outputs at a time: two streams of weights

// Dot products of `rows` inputs with kOutputs filters.
template <int kRows, class T>
void dot_products(const T* x, const T* weight, int64_t filters, int64_t C, float (*sums)[kOutputs]) {
  Vec sum[kRows][kOutputs];
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kOutputs; ++k) sum[r][k] = Vec::zero();
  const T* second = filters > 1 ? weight + C : weight;
  const auto step = [&](auto load) {
    const Vec w[kOutputs] = {load(weight), load(second)};
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec value = load(x + r * C);
#pragma GCC unroll 2
      for (int k = 0; k < kOutputs; ++k) sum[r][k] = sum[r][k].fma(value, w[k]);
    }
  };
  int64_t c = 0;
  for (; c + Vec::kWidth <= C; c += Vec::kWidth) {
    // The processor's own prefetching stops at each page.
    prefetch_read(reinterpret_cast<const char*>(weight + kOutputs * C + c));
    prefetch_read(reinterpret_cast<const char*>(second + kOutputs * C + c));
    step([c](const T* from) { return Vec::load(from + c); });
  }
  const int64_t n = C - c;
  if (n > 0) step([c, n](const T* from) { return Vec::load(from + c, n); });
  for (int r = 0; r < kRows; ++r)
    for (int k = 0; k < kOutputs; ++k) sums[r][k] = sum[r][k].sum();
}

template <int kRows = kInputs, class T>
void dot_products(int64_t rows, const T* x, const T* weight, int64_t filters, int64_t C, float (*sums)[kOutputs]) {
  if (rows == kRows) return dot_products<kRows>(x, weight, filters, C, sums);
  if constexpr (kRows > 1) dot_products<kRows - 1>(rows, x, weight, filters, C, sums);
}

template <class T>
void linear(const LinearProblem& p, const LinearArgs& args, const Pool& pool) {
  const T *x = static_cast<const T*>(args.x), *weight = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  T* y = static_cast<T*>(args.y);
  const float lo = static_cast<float>(p.clamp.lo), hi = static_cast<float>(p.clamp.hi);
  pool(ceil_div(p.K, kOutputs), most(1, (1 << 14) / p.C), [&](int64_t begin, int64_t end) {
    float sums[kInputs][kOutputs];
    for (int64_t n = 0; n < p.N; n += kInputs)
      for (int64_t k = begin * kOutputs; k < least(p.K, end * kOutputs); k += kOutputs) {
        const int64_t rows = least(kInputs, p.N - n), filters = least(kOutputs, p.K - k);
        dot_products(rows, x + n * p.C, weight + k * p.C, filters, p.C, sums);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t f = 0; f < filters; ++f) {
            const float value = sums[r][f] + (bias ? to_float(bias[k + f]) : 0.0f);
            store_one(value < lo ? lo : value > hi ? hi : value, y + (n + r) * p.K + k + f);
          }
      }
  });
}

}  // namespace
}  // namespace pyserve
