// Convolution of few input channels by kernels of 7×7 with stride 2: the first layers of ResNets. Winograd along the
// rows alone (a product is a sum over the R·C inputs above each other), so that transforms stay small beside the little
// that there is to sum; and, for prediction, the max pooling that often follows, from rows that are still in the cache.
//
//     V [row][point][C][tile]     transformed input rows, of which each output row needs R
//     U [panel][point][R·C][K]    transformed weights
//     M [point][tile][K]          products of a group of tiles, by a register tile of its own
//
// Input rows are taken apart by the phase of their pixels in a tile, so that transforms run along vectors of tiles.
// float32 sums; float32 and bfloat16 tensors. Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "convert.h"
#include "pooled_rows.h"
#include "stem_transform.h"

namespace pyserve {
namespace {

using Scheme = StemSeven;
constexpr int64_t kTileOutputs = 4;
constexpr int64_t kGroupTiles = 12;  // tiles whose M stays in the L1 cache
constexpr int64_t kMostStemTaps = 8;
constexpr int64_t kStemPad = 16;  // floats between the points' parts of M
constexpr int64_t kStemColumns = Vec::kMostVectors * Vec::kWidth;

struct StemShape {
  Conv2dProblem p;
  int64_t points, stride;
  int64_t tiles() const { return ceil_div(p.Q, kTileOutputs); }
  int64_t padded_tiles() const { return ceil_div(tiles(), Vec::kWidth) * Vec::kWidth; }
  int64_t depth() const { return p.R * p.C; }
  int64_t vectors() const { return ceil_div(p.K, Vec::kWidth); }
  int64_t panels() const { return ceil_div(vectors(), Vec::kMostVectors); }
  int64_t first_column(int64_t panel) const { return vectors() * panel / panels() * Vec::kWidth; }
  int64_t u_size() const { return points * depth() * vectors() * Vec::kWidth; }
  const float* u_at(const float* u, int64_t panel) const { return u + points * depth() * first_column(panel); }
  int64_t row_size() const { return points * p.C * padded_tiles(); }
};

inline StemShape stem_shape(const Conv2dProblem& p) { return {p, Scheme::kPoints, Scheme::kStride}; }

// ---------------------------------------------------------------------------------------------------- weights

template <class T>
void transform_stem_weights(const StemShape& s, const T* weight, float* u) {
  const Conv2dProblem& p = s.p;
  for (int64_t panel = 0; panel < s.panels(); ++panel) {
    const int64_t first = s.first_column(panel), width = s.first_column(panel + 1) - first;
    for (int64_t i = 0; i < s.depth(); ++i) {  // i = r·C + c
      alignas(64) float taps[Scheme::kTaps][kStemColumns] = {};
      for (int64_t k = 0; k < least(width, p.K - first); ++k)
        for (int64_t t = 0; t < Scheme::kTaps; ++t)
          taps[t][k] = to_float(weight[(first + k) * p.R * p.S * p.C + (i / p.C * p.S + t) * p.weight_by_tap() +
                                       i % p.C * p.weight_by_c()]);
      for (int64_t column = 0; column < width; column += Vec::kWidth) {
        Vec w[Scheme::kTaps], o[Scheme::kPoints];
        for (int64_t t = 0; t < Scheme::kTaps; ++t) w[t] = Vec::load(&taps[t][column]);
        Scheme::weights(w, o);
        for (int64_t j = 0; j < Scheme::kPoints; ++j)
          o[j].store(u + s.points * s.depth() * first + (j * s.depth() + i) * width + column);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------- input rows

// One row of x, [W][C], to V [point][C][tile]; `phases` is scratch of kPhases·C rows of padded_tiles() + width.
template <class T>
void transform_stem_row(const StemShape& s, const T* row, float* phases, float* v) {
  constexpr int64_t kPhases = kTileOutputs * Scheme::kStride,
                    kInputs = (kTileOutputs - 1) * Scheme::kStride + Scheme::kTaps;
  const int64_t C = s.p.C, length = s.padded_tiles() + Vec::kWidth;
  for (int64_t phase = 0; phase < kPhases; ++phase) {
    // Tiles whose pixel tile·kPhases + phase − pad is inside the row.
    const int64_t shift = phase - s.p.pad_w, begin = shift < 0 ? ceil_div(-shift, kPhases) : 0;
    const int64_t end = most(begin, least(length, ceil_div(s.p.W - shift, kPhases)));
    for (int64_t c = 0; c < C; ++c) {
      float* to = phases + (phase * C + c) * length;
      const T* from = row + shift * C + c;
      fill_zero(to, begin);
      for (int64_t t = begin; t < end; ++t) to[t] = to_float(from[t * kPhases * C]);
      fill_zero(to + end, length - end);
    }
  }
  for (int64_t c = 0; c < C; ++c)
    for (int64_t t = 0; t < s.padded_tiles(); t += Vec::kWidth) {
      Vec d[kInputs], o[Scheme::kPoints];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kInputs; ++i) d[i] = Vec::load(phases + (i % kPhases * C + c) * length + t + i / kPhases);
      Scheme::input(d, o);
#pragma GCC unroll 16
      for (int64_t j = 0; j < Scheme::kPoints; ++j) o[j].store(v + (j * C + c) * s.padded_tiles() + t);
    }
}

// ---------------------------------------------------------------------------------------------------- products

// m[tile][column] = Σ_r Σ_c rows[r][c · tile_step + tile] · u[r · C + c][column]
template <int kRows, int kVectors>
void multiply_stem(const float* const* rows, int64_t R, int64_t C, int64_t offset, int64_t tile_step, const float* u,
                   float* m) {
  constexpr int kWidth = kVectors * Vec::kWidth;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[t][v] = Vec::zero();
  for (int64_t r = 0; r < R; ++r) {
    const float* a = rows[r] + offset;
    for (int64_t c = 0; c < C; ++c, a += tile_step, u += kWidth) {
      Vec column[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) column[v] = Vec::load(u + v * Vec::kWidth);
#pragma GCC unroll 16
      for (int t = 0; t < kRows; ++t) {
        const Vec value = Vec::set(a[t]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[t][v] = sum[t][v].fma(value, column[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[t][v].store(m + t * kWidth + v * Vec::kWidth);
}

// Tiles in steps of kRows; the last step may take some more than there are, whose inputs are zeros.
template <int kVectors>
void multiply_group(const float* const* rows, const StemShape& s, int64_t point, int64_t first, int64_t count,
                    const float* u, float* m) {
  constexpr int kRows = Vec::rows(kVectors) > 6 ? 6 : Vec::rows(kVectors);
  for (int64_t t = 0; t < count; t += kRows)
    multiply_stem<kRows, kVectors>(rows, s.p.R, s.p.C, point * s.p.C * s.padded_tiles() + first + t, s.padded_tiles(),
                                   u, m + t * kVectors * Vec::kWidth);
}

template <int kVectors = 1, class... Args>
void multiply_group_of(int64_t vectors, const Args&... args) {
  if (vectors == kVectors) return multiply_group<kVectors>(args...);
  if constexpr (kVectors < Vec::kMostVectors) multiply_group_of<kVectors + 1>(vectors, args...);
}

// ---------------------------------------------------------------------------------------------------- output rows

// Makes output rows one by one, each from the transformed input rows that it shares with its neighbours. One per
// thread.
template <class T>
class StemRows {
 public:
  static int64_t scratch_size(const StemShape& s) {
    return (s.p.R + 1) * v_size(s) + phases_size(s) + s.points * m_step(s) + Vec::kWidth;
  }

  StemRows(const StemShape& s, const Conv2dArgs& args, const float* u, const float* bias, float* scratch)
      : s_(s),
        x_(static_cast<const T*>(args.x)),
        residual_(static_cast<const T*>(args.residual)),
        u_(u),
        bias_(bias),
        v_(scratch),
        zeros_(v_ + s.p.R * v_size(s)),
        phases_(zeros_ + v_size(s)),
        m_(phases_ + phases_size(s)) {
    fill_zero(zeros_, v_size(s));
    for (int64_t r = 0; r < s.p.R; ++r) in_slot_[r] = -1;
  }

  // Row p of image n to out [Q][K]. Whether all of it is finite.
  template <class Out>
  bool make(int64_t n, int64_t p, Out* out) {
    const float* rows[kMostStemTaps];
    for (int64_t r = 0; r < s_.p.R; ++r) rows[r] = row_of(n, p * s_.p.stride_h - s_.p.pad_h + r);
    Vec check = Vec::zero();
    for (int64_t panel = 0; panel < s_.panels(); ++panel) {
      const int64_t first = s_.first_column(panel), width = s_.first_column(panel + 1) - first;
      for (int64_t tile = 0; tile < s_.tiles(); tile += kGroupTiles) {
        const int64_t count = least(kGroupTiles, s_.tiles() - tile);
        for (int64_t j = 0; j < s_.points; ++j)
          multiply_group_of(width / Vec::kWidth, rows, s_, j, tile, count, s_.u_at(u_, panel) + j * s_.depth() * width,
                            m_ + j * m_step(s_));
        for (int64_t t = 0; t < count; ++t)
          for (int64_t column = 0; column < width; column += Vec::kWidth)
            check = check + load_and_write(n, p, tile + t, m_ + t * width + column, first + column, out);
      }
    }
    return !check.any_nan();
  }

 private:
  // The last group may read and write some tiles beyond its own.
  static int64_t v_size(const StemShape& s) { return s.row_size() + 2 * Vec::kWidth; }
  static int64_t m_step(const StemShape&) { return kGroupTiles * kStemColumns + kStemPad; }
  static int64_t phases_size(const StemShape& s) {
    return kTileOutputs * Scheme::kStride * s.p.C * (s.padded_tiles() + Vec::kWidth);
  }

  // Input row h, transformed: kept in slot h mod R until row h + R takes its place.
  const float* row_of(int64_t n, int64_t h) {
    if (h < 0 || h >= s_.p.H) return zeros_;
    const int64_t slot = h % s_.p.R, row = n * s_.p.H + h;
    float* v = v_ + slot * v_size(s_);
    if (in_slot_[slot] != row) transform_stem_row(s_, x_ + row * s_.p.W * s_.p.C, phases_, v);
    in_slot_[slot] = row;
    return v;
  }

  template <class Out>
  Vec load_and_write(int64_t n, int64_t p, int64_t tile, const float* m, int64_t column, Out* out) const {
    Vec points[Scheme::kPoints];
#pragma GCC unroll 16
    for (int j = 0; j < Scheme::kPoints; ++j) points[j] = Vec::load(m + j * m_step(s_));
    return write(n, p, tile, points, column, out);
  }

  // Four outputs × one vector; NaN somewhere in what it returns where one of them is not finite.
  template <class Out>
  __attribute__((always_inline)) Vec write(int64_t n, int64_t p, int64_t tile, const Vec* points, int64_t column,
                                           Out* out) const {
    Vec y[kTileOutputs], check = Vec::zero();
    Scheme::output(points, y);
    const int64_t K = s_.p.K, left = K - column, outputs = least(kTileOutputs, s_.p.Q - tile * kTileOutputs);
    const Vec add = bias_ ? Vec::load(bias_ + column) : Vec::zero();
    const Vec lo = Vec::set(static_cast<float>(s_.p.clamp.lo)), hi = Vec::set(static_cast<float>(s_.p.clamp.hi));
#pragma GCC unroll 4
    for (int64_t i = 0; i < kTileOutputs; ++i) {
      if (i >= outputs) break;
      const int64_t q = tile * kTileOutputs + i, at = q * K + column;
      check = check.fma(y[i], Vec::zero());
      Vec value = y[i] + add;
      const T* beside = residual_ ? residual_ + (n * s_.p.P + p) * s_.p.Q * K + at : nullptr;
      if (beside) value = value + (left < Vec::kWidth ? Vec::load(beside, left) : Vec::load(beside));
      value = value.clamp(lo, hi);
      left < Vec::kWidth ? value.store(out + at, left) : value.store(out + at);
    }
    return check;
  }

  const StemShape& s_;
  const T *x_, *residual_;
  const float *u_, *bias_;
  float *v_, *zeros_, *phases_, *m_;
  int64_t in_slot_[kMostStemTaps];
};

// Whether all of y is finite; otherwise not all of it may be written.
template <class T>
bool stem_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  const StemShape s = stem_shape(p);
  const float* u = args.packed;
  if (u == nullptr) {
    float* transformed = allocate_floats(pool, s.u_size());
    transform_stem_weights(s, static_cast<const T*>(args.weight), transformed);
    u = transformed;
  }
  float* bias = nullptr;
  if (args.bias) {
    bias = zero_row<float>(pool, s.vectors() * Vec::kWidth);
    widen_row(static_cast<const T*>(args.bias), bias, p.K);
  }
  const int64_t rows = p.pool.size ? p.pooled(p.P) : p.P, row_size = (p.pool.size ? p.pooled(p.Q) : p.Q) * p.K;
  const int64_t own = StemRows<T>::scratch_size(s), pooling = PooledRows::scratch_size(p);
  float* scratch = allocate_floats(pool, pool.workers(p.N * rows) * (own + pooling));
  T* y = static_cast<T*>(args.y);
  bool finite = true;
  pool.share(p.N * rows, [&](int64_t worker, int64_t begin, int64_t end) {
    float* mine = scratch + worker * (own + pooling);
    StemRows<T> maker(s, args, u, bias, mine);
    PooledRows pooled(p, mine + own);
    bool good = true;
    for (int64_t i = begin; i < end && good; ++i)
      good = p.pool.size ? pooled.make(maker, i / rows, i % rows, y + i * row_size)
                         : maker.make(i / rows, i % rows, y + i * row_size);
    if (!good) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
  });
  return finite;
}

inline bool stem_forward(const Conv2dProblem& p, const Conv2dArgs& args, const Pool& pool) {
  return p.dtype == DType::f32 ? stem_forward<float>(p, args, pool) : stem_forward<Bf16>(p, args, pool);
}

inline int32_t stem_layout(const Conv2dProblem&) { return 0; }

inline int64_t stem_packed_size(const Conv2dProblem& p) { return stem_shape(p).u_size(); }

inline void stem_pack(const Conv2dProblem& p, const void* weight, float* packed, const Pool&) {
  p.dtype == DType::f32 ? transform_stem_weights(stem_shape(p), static_cast<const float*>(weight), packed)
                        : transform_stem_weights(stem_shape(p), static_cast<const Bf16*>(weight), packed);
}

}  // namespace
}  // namespace pyserve
