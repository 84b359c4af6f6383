// The meaning of max pooling and adaptive average pooling: plain loops, sums in float64.
#include "../variants.h"
#include "element.h"

namespace pyserve {
namespace {

// y = finish(add(…, x) over the window, its pixels) at every position and channel.
template <class T, class Window, class Add, class Finish>
void pool_plain(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool, Window window, double start,
                Add add, Finish finish) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  pool(p.N * p.P, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * p.Q * p.C; i < end * p.Q * p.C; ++i) {
      const int64_t c = i % p.C, q = i / p.C % p.Q, row = i / p.C / p.Q;
      const PoolingWindow rows = window(row % p.P, 0), columns = window(q, 1);
      double value = start;
      for (int64_t h = rows.begin; h < rows.end; ++h)
        for (int64_t w = columns.begin; w < columns.end; ++w)
          value = add(value, widen(x[((row / p.P * p.H + h) * p.W + w) * p.C + c]));
      y[i] = narrow<T>(finish(value, (rows.end - rows.begin) * (columns.end - columns.begin)));
    }
  });
}

template <class T>
void max_pool(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  pool_plain<T>(
      p, args, pool,
      [&](int64_t out, int axis) {
        return axis == 0 ? max_pool2d_window(out, p.R, p.stride_h, p.pad_h, p.H)
                         : max_pool2d_window(out, p.S, p.stride_w, p.pad_w, p.W);
      },
      -INFINITY, [](double a, double b) { return a > b || a != a ? a : b; }, [](double a, int64_t) { return a; });
}

template <class T>
void average_pool(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  pool_plain<T>(
      p, args, pool,
      [&](int64_t out, int axis) {
        return axis == 0 ? average_pool2d_window(out, p.P, p.H) : average_pool2d_window(out, p.Q, p.W);
      },
      0.0, [](double a, double b) { return a + b; },
      [](double a, int64_t pixels) { return a / static_cast<double>(pixels); });
}

}  // namespace

void max_pool2d_direct_scalar(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return max_pool<float>(p, args, pool);
  if (p.dtype == DType::bf16) return max_pool<BFloat16>(p, args, pool);
  max_pool<double>(p, args, pool);
}

void average_pool2d_direct_scalar(const PoolingProblem& p, const PoolingArgs& args, const Pool& pool) {
  if (p.dtype == DType::f32) return average_pool<float>(p, args, pool);
  if (p.dtype == DType::bf16) return average_pool<BFloat16>(p, args, pool);
  average_pool<double>(p, args, pool);
}

}  // namespace pyserve
