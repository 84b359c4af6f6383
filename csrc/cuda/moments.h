// Count, mean and squared distances from it of some numbers, collected and merged without ever taking the difference of
// large sums (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
// 1979).
#pragma once
#include "element.h"

namespace pyserve {

struct alignas(16) Moments {
  float count = 0, mean = 0, squares = 0;

  PYSERVE_DEVICE void merge(const Moments& other) {
    if (other.count == 0) return;
    const float all = count + other.count, distance = other.mean - mean, share = other.count / all;
    mean += distance * share;
    squares += other.squares + distance * distance * (count * share);
    count = all;
  }

  // `rows` numbers of shared memory, or the `left` that exist, that lie `pitch` apart: each plus `bias`, as it is
  // stored in T.
  template <class T, int32_t rows>
  PYSERVE_DEVICE void add(const float* from, int32_t pitch, int32_t left, float bias) {
    float values[rows];
    Moments more;
#pragma unroll
    for (int32_t i = 0; i < rows; ++i) {
      values[i] = widen(narrow<T>(device::load_shared(from + i * pitch) + bias));
      if (i < left) more.count += 1, more.mean += values[i];
    }
    if (more.count == 0) return;
    more.mean /= more.count;
#pragma unroll
    for (int32_t i = 0; i < rows; ++i) {
      const float distance = values[i] - more.mean;
      if (i < left) more.squares += distance * distance;
    }
    merge(more);
  }
};

}  // namespace pyserve
