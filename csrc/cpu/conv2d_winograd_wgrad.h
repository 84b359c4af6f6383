// The weight gradient of a 3×3 convolution by Winograd's minimal filtering: the forward convolution, transposed,
//
//     dW = Gᵀ [Σ_tiles (Bᵀ D B) ∘ (A dY Aᵀ)] G,
//
// so that each tile of 4×4 outputs takes 36 (stride 1) or 81 (stride 2) instead of 144 products per pair of channels.
//
//     V [point][C / width][tile][width]    transformed inputs, as in the forward convolution
//     Y [point][tile][columns]             expanded output gradients of a panel of output channels
//     dU [6 × 6][width][columns]           their products, summed over tiles, for a group of C and a panel of K
//
// With AVX512-BF16 V and Y are of bfloat16, [point][channels / 2·width][tile][2·width], and before they are multiplied
// the lines of two neighbouring tiles become words of one number of each, which Vec::dot sums over.
//
// Where all of dU is small, the tiles are cut into parts with a dU each, which threads share out. Else panels come one
// after the other and threads share out groups, which need little memory for dU. Parts and blocks depend on the problem
// alone: the result does not depend on the number of threads. Where it is not finite the direct kernel does it again.
// float32 sums; float32 and bfloat16 tensors. Needs Vec; local to each including file.
#pragma once
#include "../variants.h"
#include "conv2d_wgrad.h"
#include "winograd_input.h"
#include "winograd_weights.h"

namespace pyserve {
namespace {

constexpr int64_t kWgradParts = 8;
constexpr int64_t kSumWords = 32;  // summed before their sum is added to the total: keeps rounding small
constexpr int64_t kPartTiles = 32 * Vec::kPerWord;  // per block: V, Y and dU of 64 channels stay in the L2 cache
constexpr int64_t kSmallGradient = 1 << 20;         // floats of dU that each part may have
constexpr int64_t kSharedFloats = 5 << 20;          // of V that all threads read: it stays in the L3 cache
constexpr int64_t kWgradPad = 80;  // floats between the points' parts: they fall into different cache sets

// Where column vector v of Y is, and how far it is to the next word: a tile, or a pair of them.
template <int kVectors>
struct ColumnsOfY {
  static constexpr int64_t kNext = Vec::kPerWord == 1 ? kVectors * Vec::kWidth : Vec::kPerWord * Vec::kWidth;
  const float* y;
  int64_t group_step;
  __attribute__((always_inline)) Vec load(int v) const {
    return Vec::load(Vec::kPerWord == 1 ? y + v * Vec::kWidth
                                        : y + v / Vec::kPerWord * group_step + v % Vec::kPerWord * Vec::kWidth);
  }
};

// d[row][column] (+)= Σ_words a[word][row] · b[word][column]; rows are channels of one group.
template <int kRows, int kVectors>
__attribute__((noinline)) void add_products(int64_t words, const float* a, ColumnsOfY<kVectors> b, float* d,
                                            bool first) {
  constexpr int kWidth = Vec::kWidth, kColumns = kVectors * kWidth;
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vec::zero();
#pragma GCC unroll 4
  for (int64_t t = 0; t < words; ++t, a += kWidth * Vec::kPerWord, b.y += b.kNext) {
    Vec column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = b.load(v);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec value = Vec::set(a[r]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = sum[r][v].dot(value, column[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = d + r * kColumns + v * kWidth;
      (first ? sum[r][v] : sum[r][v] + Vec::load(to)).store(to);
    }
}

// All channels of one group, in register tiles of about equal height.
template <int kVectors, int kPart = 0>
void add_group(int64_t words, const float* a, ColumnsOfY<kVectors> b, float* d, bool first) {
  constexpr int kParts = (Vec::kWidth + Vec::rows(kVectors) - 1) / Vec::rows(kVectors);
  constexpr int kFirst = Vec::kWidth * kPart / kParts, kRows = Vec::kWidth * (kPart + 1) / kParts - kFirst;
  add_products<kRows, kVectors>(words, a + kFirst, b, d + kFirst * kVectors * Vec::kWidth, first);
  if constexpr (kPart + 1 < kParts) add_group<kVectors, kPart + 1>(words, a, b, d, first);
}

template <int kVectors = 1>
void add_group_of(int64_t vectors, int64_t words, const float* a, const float* y, int64_t y_group_step, float* d,
                  bool first) {
  if (vectors == kVectors) return add_group<kVectors>(words, a, {y, y_group_step}, d, first);
  if constexpr (kVectors < Vec::kMostVectors) add_group_of<kVectors + 1>(vectors, words, a, y, y_group_step, d, first);
}

// Lines of tiles, 2·width channels each, to words of two neighbouring tiles: their first line has those of the first
// `width` channels, their second the others'. Tiles outside of [first, last) count as zeros. Where words are floats
// there is nothing to do.
template <class PairVec = Vec>
void pair_tiles(float* lines, int64_t first, int64_t last) {
  if constexpr (PairVec::kPerWord == 2)
    for (int64_t t = first / 2 * 2; t < last; t += 2) {
      float* line = lines + t * Vec::kWidth;
      const Vec even = t < first ? Vec::zero() : Vec::load(line);
      const Vec odd = t + 1 < last ? Vec::load(line + Vec::kWidth) : Vec::zero();
      PairVec::interleaved(even, odd, 0).store(line);
      PairVec::interleaved(even, odd, 1).store(line + Vec::kWidth);
    }
}

// One vector of channels of a tile's output gradient, expanded: y[point · y_step].
template <class Scheme, int kHeight, int kWidth, bool kPartial, class T>
__attribute__((always_inline)) inline void expand_vector(const T* const* pixel, int64_t column, int64_t n,
                                                         Vec::Factor* y, int64_t y_step) {
  constexpr int kPoints = Scheme::kPoints;
  Vec half[kPoints * kWidth];
#pragma GCC unroll 4
  for (int j = 0; j < kWidth; ++j) {
    Vec outputs[kHeight];
#pragma GCC unroll 4
    for (int i = 0; i < kHeight; ++i) {
      const T* from = pixel[i * 4 + j] + column;
      outputs[i] = kPartial ? Vec::load(from, n) : Vec::load(from);
    }
    Scheme::template expand<kHeight>(outputs, half + j, kWidth);
  }
#pragma GCC unroll 9
  for (int i = 0; i < kPoints; ++i) {
    if (!Scheme::has(kHeight, i)) continue;
    Vec row[kPoints];
    Scheme::template expand<kWidth>(half + i * kWidth, row, 1);
#pragma GCC unroll 9
    for (int j = 0; j < kPoints; ++j)
      if (Scheme::has(kWidth, j)) row[j].store(y + (i * kPoints + j) * y_step);
  }
}

template <class Scheme, class T>
class WinogradWgrad {
  static constexpr int64_t kPoints = Scheme::kPoints, kSpectrum = kPoints * kPoints, kUnits = kWeights * kWeights;
  static constexpr int64_t kGroup = Vec::kWidth * Vec::kPerWord;  // channels of a line of V

 public:
  WinogradWgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool)
      : s_(winograd_forward_shape<Scheme>(p)),
        x_(static_cast<const T*>(args.x)),
        grad_(static_cast<const T*>(args.grad)),
        dw_(static_cast<T*>(args.dw)),
        pool_(pool),
        zeros_(zero_row<T>(pool, most(s_.groups() * kGroup, s_.padded()))),
        by_part_(gradient_size() <= kSmallGradient),
        blocks_(ceil_div(s_.map.tiles(), by_part_ ? kPartTiles : kMostTiles)),
        v_step_(s_.groups() * group_step(ceil_div(s_.map.tiles(), blocks_)) + kWgradPad),
        y_step_(kMostColumns / Vec::kWidth * group_step(ceil_div(s_.map.tiles(), blocks_)) + kWgradPad) {}

  // Whether the gradient is finite.
  bool run() {
    by_part_ ? run_by_part() : run_by_panel();
    return finite_;
  }

 private:
  int64_t groups() const { return ceil_div(s_.depth, Vec::kWidth); }
  int64_t gradient_size() const { return kUnits * groups() * Vec::kWidth * s_.padded(); }
  int64_t v_size() const { return kSpectrum * v_step_; }
  int64_t y_size() const { return kSpectrum * y_step_; }
  // Floats from one group's lines to the next's; with pairs the number of lines is even.
  static int64_t group_step(int64_t tiles) { return ceil_div(tiles, Vec::kPerWord) * kGroup; }
  int64_t width(int64_t panel) const { return s_.first_column(panel + 1) - s_.first_column(panel); }
  // dU [panel][group][6 × 6][width of a group][columns]: what one square of channels sums up is in one place.
  int64_t square_at(int64_t panel, int64_t group) const {
    return kUnits * Vec::kWidth * (groups() * s_.first_column(panel) + group * width(panel));
  }
  WinogradBlock block(int64_t i) const {
    const int64_t tiles = s_.map.tiles(), first = tiles * i / blocks_;
    return WinogradBlock(s_.map, first, tiles * (i + 1) / blocks_ - first);
  }

  void run_by_part() {
    const int64_t parts = least(kWgradParts, blocks_), workers = pool_.workers(parts), panels = s_.panels();
    float* all_v = allocate_floats(pool_, workers * v_size());
    float* all_y = allocate_floats(pool_, workers * panels * y_size());
    float* du = allocate_floats(pool_, parts * gradient_size());
    pool_.share(parts, [&](int64_t worker, int64_t begin, int64_t end) {
      float *v = all_v + worker * v_size(), *y = all_y + worker * panels * y_size();
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = blocks_ * part / parts, last = blocks_ * (part + 1) / parts;
        for (int64_t i = first; i < last; ++i) add_block(block(i), v, y, du + part * gradient_size(), i == first);
      }
    });
    if (parts > 1) add_parts(du, parts, gradient_size(), du, pool_);
    pool_(panels * groups(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        finish_square(i / groups(), i % groups(), du + square_at(i / groups(), i % groups()));
    });
  }

  // All that one block adds to dU.
  void add_block(const WinogradBlock& tiles, float* v, float* y, float* du, bool first) const {
    transform_inputs<Scheme>(s_, tiles, 0, tiles.count, x_, zeros_, v, v_step_, group_step(tiles.count));
    for (int64_t point = 0; point < kSpectrum; ++point) pair_point(tiles, point, v + point * v_step_, s_.groups());
    for (int64_t panel = 0; panel < s_.panels(); ++panel) {
      float* const expanded = y + panel * y_size();
      expand_outputs(tiles, panel, 0, tiles.count, expanded);
      for (int64_t point = 0; point < kSpectrum; ++point)
        pair_point(tiles, point, expanded + point * y_step_, ceil_div(width(panel), kGroup));
      for (int64_t group = 0; group < groups(); ++group)
        add_square(tiles, v, expanded, panel, group, du + square_at(panel, group), first);
    }
  }

  // As many blocks at a time as the L3 cache holds the V of. Squares that more are to be added to wait in memory.
  void run_by_panel() {
    const int64_t at_a_time = least(blocks_, most(1, kSharedFloats / v_size()));
    const bool at_once = at_a_time == blocks_;
    float *v = allocate_floats(pool_, at_a_time * v_size()), *y = allocate_floats(pool_, at_a_time * y_size());
    const int64_t square = kUnits * Vec::kWidth * kMostColumns;
    float* du = allocate_floats(pool_, at_once ? pool_.workers(groups()) * square : gradient_size());
    for (int64_t first = 0; first < blocks_; first += at_a_time) {
      const int64_t last = least(blocks_, first + at_a_time);
      for_each_tile(first, last, [&](const WinogradBlock& tiles, int64_t i, int64_t begin, int64_t end) {
        transform_inputs<Scheme>(s_, tiles, begin, end, x_, zeros_, v + i * v_size(), v_step_, group_step(tiles.count));
      });
      pair_blocks(first, last, v, v_step_, s_.groups());
      for (int64_t panel = 0; panel < s_.panels(); ++panel) {
        for_each_tile(first, last, [&](const WinogradBlock& tiles, int64_t i, int64_t begin, int64_t end) {
          expand_outputs(tiles, panel, begin, end, y + i * y_size());
        });
        pair_blocks(first, last, y, y_step_, ceil_div(width(panel), kGroup));
        pool_.share(groups(), [&](int64_t worker, int64_t begin, int64_t end) {
          for (int64_t group = begin; group < end; ++group) {
            float* sums = du + (at_once ? worker * square : square_at(panel, group));
            for (int64_t i = first; i < last; ++i)
              add_square(block(i), v + (i - first) * v_size(), y + (i - first) * y_size(), panel, group, sums, i == 0);
            if (last == blocks_) finish_square(panel, group, sums);
          }
        });
      }
    }
  }

  // f(block, its number from `first` on, tiles [begin, end) of it) over all tiles of some blocks.
  template <class F>
  void for_each_tile(int64_t first, int64_t last, F&& f) const {
    const int64_t tiles = s_.map.tiles(), start = tiles * first / blocks_;
    pool_(tiles * last / blocks_ - start, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t of_block = tiles * i / blocks_ - start, past = tiles * (i + 1) / blocks_ - start;
        if (most(begin, of_block) < least(end, past))
          f(block(i), i - first, most(begin, of_block) - of_block, least(end, past) - of_block);
      }
    });
  }

  // One point's lines of a block in V or Y.
  static void pair_point(const WinogradBlock& tiles, int64_t point, float* lines, int64_t groups) {
    const bool three_rows = Scheme::has(3, point / kPoints), three_columns = Scheme::has(3, point % kPoints);
    const int64_t first = tiles.first_with(three_rows, three_columns),
                  last = tiles.last_with(three_rows, three_columns);
    for (int64_t group = 0; group < groups; ++group) pair_tiles(lines + group * group_step(tiles.count), first, last);
  }
  // Those of blocks [first, last), whose points are `step` apart.
  void pair_blocks(int64_t first, int64_t last, float* lines, int64_t step, int64_t groups) const {
    if (Vec::kPerWord == 1) return;
    pool_((last - first) * kSpectrum, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pair_point(block(first + i / kSpectrum), i % kSpectrum, lines + i * step, groups);
    });
  }

  Vec::Factor* y_at(float* y, int64_t tiles, int64_t tile, int64_t columns, int64_t column) const {
    if (Vec::kPerWord == 1) return reinterpret_cast<Vec::Factor*>(y + tile * columns + column);
    return reinterpret_cast<Vec::Factor*>(y + column / kGroup * group_step(tiles) + tile * Vec::kWidth) +
           column % kGroup;
  }

  // Tiles [begin, end) of a block, one panel of channels, into Y.
  void expand_outputs(const WinogradBlock& tiles, int64_t panel, int64_t begin, int64_t end, float* y) const {
    const int64_t first = s_.first_column(panel), columns = width(panel);
    for (int64_t b = begin; b < end; ++b) {
      const WinogradTile& t = tiles.tile[b];
      alignas(64) const T* pixel[16];  // GCC 12 stores to it as if it were aligned, so it has to be
      for (int64_t i = 0; i < t.outputs_h; ++i)
        for (int64_t j = 0; j < t.outputs_w; ++j) {
          const bool inside = t.p + i < s_.map.P && t.q + j < s_.map.Q;
          const int64_t at = ((t.n * s_.map.P + t.p + i) * s_.map.Q + t.q + j) * s_.columns;
          pixel[i * 4 + j] = inside ? grad_ + at : zeros_;
        }
      with_outputs(t, [&](auto height_of, auto width_of) {
        constexpr int kHeight = decltype(height_of)::value, kWidth = decltype(width_of)::value;
        for (int64_t column = 0; column < columns; column += Vec::kWidth) {
          const int64_t n = s_.columns - first - column;
          Vec::Factor* const to = y_at(y, tiles.count, b, columns, column);
          if (n < Vec::kWidth)
            expand_vector<Scheme, kHeight, kWidth, true>(pixel, first + column, n, to, y_step_ * Vec::kPerWord);
          else
            expand_vector<Scheme, kHeight, kWidth, false>(pixel, first + column, n, to, y_step_ * Vec::kPerWord);
        }
      });
    }
  }

  // A square of dU, a group of input channels × a panel of output channels, (+)= the products of a block's tiles.
  void add_square(const WinogradBlock& tiles, const float* v, const float* y, int64_t panel, int64_t group,
                  float* square, bool first) const {
    const int64_t columns = width(panel), vectors = columns / Vec::kWidth, step = group_step(tiles.count);
    const float* const of_group = v + group / Vec::kPerWord * step + group % Vec::kPerWord * Vec::kWidth;
    const int64_t y_word = Vec::kPerWord == 1 ? columns : kGroup;
    for (int64_t i = 0; i < kPoints; ++i)
      for (int64_t j = 0; j < kPoints; ++j) {
        const int wi = Scheme::weight_of(i), wj = Scheme::weight_of(j);
        const bool three_rows = Scheme::has(3, i), three_columns = Scheme::has(3, j);
        const int64_t point = i * kPoints + j,
                      last = ceil_div(tiles.last_with(three_rows, three_columns), Vec::kPerWord);
        float* sums = square + (wi * kWeights + wj) * Vec::kWidth * columns;
        bool fresh = first && i == wi && j == wj;
        for (int64_t word = tiles.first_with(three_rows, three_columns) / Vec::kPerWord; fresh || word < last;
             word += kSumWords, fresh = false)
          add_group_of(vectors, least(kSumWords, last - word), of_group + point * v_step_ + word * kGroup,
                       y + point * y_step_ + word * y_word, step, sums, fresh);
      }
  }

  // Gᵀ dU G of a square, transposed to dw.
  void finish_square(int64_t panel, int64_t group, const float* square) {
    const int64_t columns = width(panel), channel = group * Vec::kWidth, n = s_.depth - channel;
    Vec check = Vec::zero();
    for (int64_t column = 0; column < columns; column += Vec::kWidth) {
      Vec taps[kTaps][Vec::kWidth];
      for (int64_t c = 0; c < Vec::kWidth; ++c) {
        Vec w[kTaps];
        gather_filter(square + c * columns + column, Vec::kWidth * columns, w);
        for (int64_t tap = 0; tap < kTaps; ++tap) taps[tap][c] = w[tap], check = check.fma(w[tap], Vec::zero());
      }
      const int64_t first = s_.first_column(panel) + column;
      s_.kcrs ? store_filters<true>(taps, first, channel, n) : store_filters<false>(taps, first, channel, n);
    }
    if (check.any_nan()) __atomic_store_n(&finite_, false, __ATOMIC_RELAXED);
  }

  // taps[tap][channel] of a vector of filters to dw [K][3][3][C], or to [K][C][3][3], where `n` channels are one row.
  template <bool kKcrs>
  void store_filters(const Vec (&taps)[kTaps][Vec::kWidth], int64_t first, int64_t channel, int64_t n) const {
    const int64_t filters = least(Vec::kWidth, s_.columns - first), length = least(n, Vec::kWidth) * kTaps;
    for (int64_t part = 0; part < kTaps; ++part) {
      Vec square[Vec::kWidth];
      for (int64_t i = 0; i < Vec::kWidth; ++i) {
        const int64_t at = part * Vec::kWidth + i;
        square[i] = kKcrs ? taps[at % kTaps][at / kTaps] : taps[part][i];
      }
      Vec::transpose(square);
      const int64_t left = kKcrs ? length - part * Vec::kWidth : n;
      for (int64_t k = 0; k < filters && left > 0; ++k) {
        T* to = dw_ + (first + k) * kTaps * s_.depth +
                (kKcrs ? channel * kTaps + part * Vec::kWidth : part * s_.depth + channel);
        left < Vec::kWidth ? square[k].store(to, left) : square[k].store(to);
      }
    }
  }

  static void gather_filter(const float* u, int64_t u_step, Vec* w) {
    Vec half[kWeights * 3];
    for (int i = 0; i < kWeights; ++i) {
      Vec row[kWeights];
      for (int j = 0; j < kWeights; ++j) row[j] = Vec::load(u + (i * kWeights + j) * u_step);
      Scheme::weight_gradient(row, half + i * 3, 1);
    }
    for (int j = 0; j < 3; ++j) {
      Vec column[kWeights];
      for (int i = 0; i < kWeights; ++i) column[i] = half[i * 3 + j];
      Scheme::weight_gradient(column, w + j, 3);
    }
  }

  const WinogradShape s_;
  const T *x_, *grad_;
  T* dw_;
  const Pool& pool_;
  const T* zeros_;
  const bool by_part_;
  const int64_t blocks_, v_step_, y_step_;
  bool finite_ = true;
};

// Whether dw is finite.
template <class Scheme, class T>
bool winograd_wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  return WinogradWgrad<Scheme, T>(p, args, pool).run();
}

template <class Scheme>
bool winograd_wgrad(const Conv2dProblem& p, const Conv2dWgradArgs& args, const Pool& pool) {
  return p.dtype == DType::f32 ? winograd_wgrad<Scheme, float>(p, args, pool)
                               : winograd_wgrad<Scheme, Bf16>(p, args, pool);
}

}  // namespace
}  // namespace pyserve
