// float copies of what the vector kernels read: bfloat16 widened, and images laid in a frame of zeros.
// Needs Vec; local to each including file.
#pragma once
#include <cstdint>

#include "../conv2d.h"
#include "../parallel.h"
#include "gather.h"

namespace pyserve {
namespace {

inline float* allocate_floats(const Pool& pool, int64_t count) {
  return static_cast<float*>(pool.allocate(pool.owner, count * static_cast<int64_t>(sizeof(float))));
}

template <class T>
void widen_row(const T* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= count; i += Vec::kWidth) Vec::load(from + i).store(to + i);
  if (i < count) Vec::load(from + i, count - i).store(to + i, count - i);
}

inline float to_float(float v) { return v; }
inline float to_float(Bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}

// Rounds to nearest, ties to even.
inline void store_one(float v, float* to) { *to = v; }
inline void store_one(float v, Bf16* to) { Vec::set(v).store(to, 1); }

template <class T>
void fill_zero(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = T(0);
}

template <class T>
T* zero_row(const Pool& pool, int64_t count) {
  T* zeros = static_cast<T*>(pool.allocate(pool.owner, count * static_cast<int64_t>(sizeof(T))));
  fill_zero(zeros, count);
  return zeros;
}

inline const float* as_floats(const float* from, int64_t, const Pool&) { return from; }

inline const float* as_floats(const Bf16* from, int64_t count, const Pool& pool) {
  constexpr int64_t kPiece = 1 << 14;
  float* to = allocate_floats(pool, count);
  pool(ceil_div(count, kPiece), 4, [&](int64_t begin, int64_t end) {
    widen_row(from + begin * kPiece, to + begin * kPiece, least(count, end * kPiece) - begin * kPiece);
  });
  return to;
}

// Each filter's [C][R·S] → [R·S][C], where the weights are not laid out so.
template <class T>
const T* krsc_weight(const Conv2dProblem& p, const void* weight, const Pool& pool) {
  const T* from = static_cast<const T*>(weight);
  const int64_t C = p.group_c(), taps = p.R * p.S, filter = C * taps;
  if (!p.kcrs || C == 1 || taps == 1) return from;
  T* to = static_cast<T*>(pool.allocate(pool.owner, p.K * filter * static_cast<int64_t>(sizeof(T))));
  pool(p.K, 1 << 12, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < C; ++c) to[k * filter + tap * C + c] = from[k * filter + c * taps + tap];
  });
  return to;
}

// A weight gradient [K][R·S][C/groups] of floats to dw, in the layout that dw has.
template <class T>
void store_gradient(const Conv2dProblem& p, const float* from, T* dw, const Pool& pool) {
  const int64_t C = p.group_c(), taps = p.R * p.S, filter = C * taps;
  pool(p.K, most(1, (1 << 12) / filter), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      for (int64_t tap = 0; tap < taps; ++tap)
        for (int64_t c = 0; c < C; ++c)
          store_one(from[k * filter + tap * C + c], dw + k * filter + c * p.weight_by_c() + tap * p.weight_by_tap());
  });
}

// [N][H][W][C] → floats [N][H + 2·pad_h][W + 2·pad_w][C] with zeros around.
template <class T>
const float* framed(const T* from, int64_t N, int64_t H, int64_t W, int64_t C, int64_t pad_h, int64_t pad_w,
                    const Pool& pool) {
  const int64_t rows = H + 2 * pad_h, row = (W + 2 * pad_w) * C;
  float* to = allocate_floats(pool, N * rows * row);
  pool(N * rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* out = to + i * row;
      const int64_t h = i % rows - pad_h;
      const bool inside = h >= 0 && h < H;
      const int64_t left = inside ? pad_w * C : row;
      fill_zero(out, left);
      if (!inside) continue;
      widen_row(from + (i / rows * H + h) * W * C, out + left, W * C);
      fill_zero(out + left + W * C, row - left - W * C);
    }
  });
  return to;
}

// Whether a row of taps is read as one run of S·C contiguous floats: worth a framed copy where C is a few channels.
inline bool reads_runs(const Conv2dProblem& p) { return p.groups == 1 && p.C < 8 && p.S > 1 && p.dilation_w == 1; }

}  // namespace
}  // namespace pyserve
