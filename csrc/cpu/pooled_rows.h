// Max pooling of a convolution's output rows while they are still in the cache. Needs Vec; local to each including
// file.
#pragma once
#include <cmath>

#include "../conv2d.h"
#include "../pooling.h"
#include "gather.h"

namespace pyserve {
namespace {

constexpr int64_t kMostPooledRows = 4;

// Row p of the pooled output from the rows that it takes, kept in slot row mod pool.size until another takes its place.
// One per thread.
class PooledRows {
 public:
  static int64_t scratch_size(const Conv2dProblem& c) { return c.pool.size * (c.Q * c.K + Vec::kWidth); }

  PooledRows(const Conv2dProblem& c, float* rows) : c_(c), rows_(rows) {
    for (int64_t& row : in_slot_) row = -1;
  }

  // `rows.make(n, h, out)` makes row h of image n and tells whether it could. Whether all could be made.
  template <class Rows, class T>
  bool make(Rows& rows, int64_t n, int64_t p, T* y) {
    const Conv2dProblem& c = c_;
    const PoolingWindow height = max_pool2d_window(p, c.pool.size, c.pool.stride, c.pool.pad, c.P);
    bool finite = true;
    for (int64_t h = height.begin; h < height.end; ++h) {
      const int64_t row = n * c.P + h;
      if (in_slot_[h % c.pool.size] != row) finite &= rows.make(n, h, slot(h));
      in_slot_[h % c.pool.size] = row;
    }
    for (int64_t q = 0; q < c.pooled(c.Q); ++q) {
      const PoolingWindow width = max_pool2d_window(q, c.pool.size, c.pool.stride, c.pool.pad, c.Q);
      for (int64_t k = 0; k < c.K; k += Vec::kWidth) {
        Vec most = Vec::set(-INFINITY);
        for (int64_t h = height.begin; h < height.end; ++h)
          for (int64_t w = width.begin; w < width.end; ++w) most = most.max(Vec::load(slot(h) + w * c.K + k));
        const int64_t at = q * c.K + k;
        c.K - k < Vec::kWidth ? most.store(y + at, c.K - k) : most.store(y + at);
      }
    }
    return finite;
  }

 private:
  float* slot(int64_t h) { return rows_ + h % c_.pool.size * (c_.Q * c_.K + Vec::kWidth); }

  const Conv2dProblem& c_;
  float* rows_;
  int64_t in_slot_[kMostPooledRows];
};

}  // namespace
}  // namespace pyserve
