// Direct convolution of few input channels, the first layers of networks: register tiles of Vec::rows(v) outputs of a
// row × v vectors of filters, summed over R·S·C. The S·C inputs of a tap row lie beside each other, so that every
// factor of the inputs is a broadcast at a constant offset from the tile's first pixel.
//
//     rows     the R input rows under an output row as floats, in a frame of zeros, each made once
//     packed   the weights [panel][R][S·C][columns]
//
// The weight gradient, of the same rows, is in conv2d_shallow_wgrad.h. float32 sums; float32 and bfloat16 tensors.
// Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "convert.h"
#include "pooled_rows.h"
#include "prefetch.h"

namespace pyserve {
namespace {

struct ShallowShape {
  Conv2dProblem p;
  int64_t depth() const { return p.S * p.C; }  // inputs per row of taps
  int64_t vectors() const { return ceil_div(p.K, Vec::kWidth); }
  int64_t padded() const { return vectors() * Vec::kWidth; }
  int64_t panels() const { return ceil_div(vectors(), Vec::kMostVectors); }
  int64_t first_column(int64_t panel) const { return vectors() * panel / panels() * Vec::kWidth; }
  int64_t packed_size() const { return p.R * depth() * padded(); }
  // The last tile of a row may reach as many pixels beyond it as the tallest tile has outputs.
  int64_t row_size() const { return most(p.W + 2 * p.pad_w, (p.Q + Vec::rows(1)) * p.stride_w + p.S) * p.C; }
};

template <class T>
void pack_shallow(const ShallowShape& s, const T* weight, float* packed) {
  const Conv2dProblem& p = s.p;
  for (int64_t panel = 0; panel < s.panels(); ++panel) {
    const int64_t first = s.first_column(panel), last = s.first_column(panel + 1);
    for (int64_t r = 0; r < p.R; ++r)
      for (int64_t i = 0; i < s.depth(); ++i)
        for (int64_t k = first; k < last; ++k)
          *packed++ = k < p.K ? to_float(weight[k * p.R * s.depth() + (r * p.S + i / p.C) * p.weight_by_tap() +
                                                i % p.C * p.weight_by_c()])
                              : 0.0f;
  }
}

// Rows of the images in their frame, each kept until the row R below takes its place. One per thread.
template <class T>
class FramedRows {
 public:
  static int64_t size(const ShallowShape& s) { return (s.p.R + 1) * s.row_size(); }

  FramedRows(const ShallowShape& s, const T* x, float* scratch) : s_(s), x_(x), rows_(scratch) {
    fill_zero(rows_, size(s));
    for (int64_t& row : in_slot_) row = -1;
  }

  // The R rows that output row p of image n reads.
  void find(int64_t n, int64_t p, const float** rows) {
    for (int64_t r = 0; r < s_.p.R; ++r) rows[r] = row_of(n, p * s_.p.stride_h - s_.p.pad_h + r);
  }

 private:
  const float* row_of(int64_t n, int64_t h) {
    if (h < 0 || h >= s_.p.H) return rows_ + s_.p.R * s_.row_size();
    const int64_t slot = h % s_.p.R, row = n * s_.p.H + h, count = s_.p.W * s_.p.C;
    float* to = rows_ + slot * s_.row_size();
    if (in_slot_[slot] != row) widen_row(x_ + row * count, to + s_.p.pad_w * s_.p.C, count);
    in_slot_[slot] = row;
    return to;
  }

  const ShallowShape& s_;
  const T* x_;
  float* rows_;
  int64_t in_slot_[kMostShallowTaps];
};

// A row of outputs in a panel's columns.
template <class T, class Out>
struct ShallowRow {
  const float* const* rows;
  const float* packed;
  const float* bias;
  const T* residual;  // [Q][K] from the panel's first column on, or null
  Out* out;           // likewise
  int64_t columns;    // that are left of K
};

// Outputs [q, q + count) of a row, count ≤ rows of the tile; kStep: floats from the pixel of an output to the next's.
template <int kVectors, int kStep, class T, class Out>
void shallow_tile(const ShallowShape& s, const ShallowRow<T, Out>& row, int64_t q, int64_t count) {
  constexpr int kRows = Vec::rows(kVectors), kWidth = kVectors * Vec::kWidth;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v] = Vec::load(row.bias + v * Vec::kWidth);
  const float* b = row.packed;
  // Lines of the next tile: stores in bursts would wait for memory.
  const char* ahead = reinterpret_cast<const char*>(row.out + (q + kRows) * s.p.K);
  for (int64_t r = 0; r < s.p.R; ++r) {
    const float* a = row.rows[r] + q * kStep;
    for (int64_t i = 0; i < s.depth(); ++i, ++a, b += kWidth) {
      Vec column[kVectors];
      prefetch_write(ahead);
      ahead += kLine;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) column[v] = Vec::load(b + v * Vec::kWidth);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const Vec value = Vec::set(a[m * kStep]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[m][v] = sum[m][v].fma(value, column[v]);
      }
    }
  }
  const Vec lo = Vec::set(static_cast<float>(s.p.clamp.lo)), hi = Vec::set(static_cast<float>(s.p.clamp.hi));
  const bool partial = row.columns < kWidth;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    if (m >= count) break;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = (q + m) * s.p.K + v * Vec::kWidth, left = row.columns - v * Vec::kWidth;
      const bool cut = v == kVectors - 1 && partial;
      Vec value = sum[m][v];
      if (row.residual) value = value + (cut ? Vec::load(row.residual + at, left) : Vec::load(row.residual + at));
      value = value.clamp(lo, hi);
      cut ? value.store(row.out + at, left) : value.store(row.out + at);
    }
  }
}

template <int kVectors, int kStep, class T, class Out>
void shallow_row(const ShallowShape& s, const ShallowRow<T, Out>& row) {
  constexpr int64_t kRows = Vec::rows(kVectors);
  for (int64_t q = 0; q < s.p.Q; q += kRows) shallow_tile<kVectors, kStep>(s, row, q, least(kRows, s.p.Q - q));
}

template <int kVectors, class T, class Out>
void shallow_row_by(int64_t step, const ShallowShape& s, const ShallowRow<T, Out>& row) {
  switch (step) {
    case 1:
      return shallow_row<kVectors, 1>(s, row);
    case 2:
      return shallow_row<kVectors, 2>(s, row);
    case 3:
      return shallow_row<kVectors, 3>(s, row);
    case 4:
      return shallow_row<kVectors, 4>(s, row);
    case 6:
      return shallow_row<kVectors, 6>(s, row);
    default:
      return shallow_row<kVectors, 8>(s, row);
  }
}

template <int kVectors = 1, class T, class Out>
void shallow_row_of(int64_t vectors, const ShallowShape& s, const ShallowRow<T, Out>& row) {
  if (vectors == kVectors) return shallow_row_by<kVectors>(s.p.stride_w * s.p.C, s, row);
  if constexpr (kVectors < Vec::kMostVectors) shallow_row_of<kVectors + 1>(vectors, s, row);
}

// Makes output rows one by one. One per thread.
template <class T>
class ShallowRows {
 public:
  ShallowRows(const ShallowShape& s, const Conv2dArgs& args, const float* packed, const float* bias, float* scratch)
      : s_(s),
        framed_(s, static_cast<const T*>(args.x), scratch),
        residual_(static_cast<const T*>(args.residual)),
        packed_(packed),
        bias_(bias) {}

  // Row p of image n to out [Q][K]; always true (see PooledRows).
  template <class Out>
  bool make(int64_t n, int64_t p, Out* out) {
    const float* rows[kMostShallowTaps];
    framed_.find(n, p, rows);
    const T* beside = residual_ ? residual_ + (n * s_.p.P + p) * s_.p.Q * s_.p.K : nullptr;
    for (int64_t panel = 0; panel < s_.panels(); ++panel) {
      const int64_t first = s_.first_column(panel), width = s_.first_column(panel + 1) - first;
      const ShallowRow<T, Out> row{rows,          packed_ + first * s_.p.R * s_.depth(),
                                   bias_ + first, beside ? beside + first : nullptr,
                                   out + first,   s_.p.K - first};
      shallow_row_of(width / Vec::kWidth, s_, row);
    }
    return true;
  }

 private:
  const ShallowShape& s_;
  FramedRows<T> framed_;
  const T* residual_;
  const float *packed_, *bias_;
};

template <class T>
void shallow_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const ShallowShape s{p};
  const float* packed = args.packed;
  if (packed == nullptr) {
    float* own = allocate_floats(pool, s.packed_size());
    pack_shallow(s, static_cast<const T*>(args.weight), own);
    packed = own;
  }
  float* bias = zero_row<float>(pool, s.padded());
  if (args.bias) widen_row(static_cast<const T*>(args.bias), bias, p.K);
  const int64_t rows = p.pooled(p.P), line = p.pooled(p.Q) * p.K;
  const int64_t own = FramedRows<T>::size(s), pooling = PooledRows::scratch_size(p);
  float* scratch = allocate_floats(pool, pool.workers(p.N * rows) * (own + pooling));
  T* y = static_cast<T*>(args.y);
  pool.share(p.N * rows, [&](int64_t worker, int64_t begin, int64_t end) {
    float* mine = scratch + worker * (own + pooling);
    ShallowRows<T> maker(s, args, packed, bias, mine);
    PooledRows pooled(p, mine + own);
    for (int64_t i = begin; i < end; ++i)
      p.pool.size ? pooled.make(maker, i / rows, i % rows, y + i * line) : maker.make(i / rows, i % rows, y + i * line);
  });
}

inline int32_t shallow_layout(const Conv2dProblem&) { return 0; }
inline int64_t shallow_packed_size(const Conv2dProblem& p) { return ShallowShape{p}.packed_size(); }
inline void shallow_pack(const Conv2dProblem& p, const void* weight, float* packed, const Pool&) {
  p.dtype == DType::f32 ? pack_shallow(ShallowShape{p}, static_cast<const float*>(weight), packed)
                        : pack_shallow(ShallowShape{p}, static_cast<const Bf16*>(weight), packed);
}

}  // namespace
}  // namespace pyserve
