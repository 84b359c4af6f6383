// Max pooling and adaptive average pooling by vectors of channels, a row of outputs per task. float32 and bfloat16.
// Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "gather.h"

namespace pyserve {
namespace {

// y[channel] = reduce over the window's pixels, for one output position.
template <class T, class Start, class Add, class Finish>
__attribute__((always_inline)) inline void pool_window(const PoolingProblem& p, const T* image, PoolingWindow rows,
                                                       PoolingWindow columns, T* y, Start start, Add add,
                                                       Finish finish) {
  const auto reduce = [&](int64_t c, auto load) {
    Vec value = start();
    for (int64_t h = rows.begin; h < rows.end; ++h)
      for (int64_t w = columns.begin; w < columns.end; ++w) value = add(value, load(image + (h * p.W + w) * p.C + c));
    return finish(value);
  };
  int64_t c = 0;
  for (; c + Vec::kWidth <= p.C; c += Vec::kWidth)
    reduce(c, [](const T* from) { return Vec::load(from); }).store(y + c);
  const int64_t n = p.C - c;
  if (n > 0) reduce(c, [n](const T* from) { return Vec::load(from, n); }).store(y + c, n);
}

template <class F>
void for_each_position(const PoolingProblem& p, const Pool& pool, F&& f) {
  pool(p.N * p.P, most(1, 4096 / (p.Q * p.C)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t q = 0; q < p.Q; ++q) f(row / p.P, row % p.P, q, (row * p.Q + q) * p.C);
  });
}

template <class T>
void max_pool(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  for_each_position(p, pool, [&](int64_t n, int64_t i, int64_t j, int64_t at) {
    const PoolingWindow rows = max_pool2d_window(i, p.R, p.stride_h, p.pad_h, p.H);
    const PoolingWindow columns = max_pool2d_window(j, p.S, p.stride_w, p.pad_w, p.W);
    pool_window(
        p, x + n * p.H * p.W * p.C, rows, columns, y + at, [] { return Vec::set(-INFINITY); },
        [](Vec a, Vec b) { return a.max(b); }, [](Vec a) { return a; });
  });
}

template <class T>
void average_pool(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  for_each_position(p, pool, [&](int64_t n, int64_t i, int64_t j, int64_t at) {
    const PoolingWindow rows = average_pool2d_window(i, p.P, p.H), columns = average_pool2d_window(j, p.Q, p.W);
    const Vec scale = Vec::set(1.0f / static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin)));
    pool_window(
        p, x + n * p.H * p.W * p.C, rows, columns, y + at, [] { return Vec::zero(); },
        [](Vec a, Vec b) { return a + b; }, [scale](Vec a) { return a * scale; });
  });
}

}  // namespace
}  // namespace pyserve
