// Sixteen floats in an AVX-512 register. Include only from *_avx512.cpp and *_avx512_bf16.cpp: everything is local to
// the including file, so that the linker can never hand AVX-512 code to other files.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace pyserve {
namespace {

using Bf16 = uint16_t;  // the bits of a bfloat16: the upper half of a float's

struct Vec {
  static constexpr int kWidth = 16;
  static constexpr int kMostVectors = 4;  // per row of a register tile
  // Rows of a register tile with `vectors` vectors each: 16 to 24 of the 32 registers hold sums.
  static constexpr int rows(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 16; }
  static constexpr int kFewTiles = 4;  // × six points of a spectrum's row: 24 of the 32 registers hold sums

  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set(float f) { return {_mm512_set1_ps(f)}; }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const Bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  // The first n < kWidth elements, zeros behind them.
  static Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static Vec load(const Bf16* p, int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(Bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
  void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  void store(Bf16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), narrow()); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  Vec fma(Vec a, Vec b) const { return {_mm512_fmadd_ps(a.v, b.v, v)}; }    // this + a·b
  Vec fnma(Vec a, Vec b) const { return {_mm512_fnmadd_ps(a.v, b.v, v)}; }  // this − a·b
  // this + a·b in the words that register tiles multiply: floats, or in *_avx512_bf16.cpp pairs of bfloat16, whose two
  // products are added (and what is smaller than float32's normal numbers is taken for zero).
#ifdef __AVX512BF16__
  using Factor = Bf16;
  static constexpr int kPerWord = 2;
  Vec dot(Vec a, Vec b) const { return {_mm512_dpbf16_ps(v, (__m512bh)a.v, (__m512bh)b.v)}; }
  // Words from their halves.
  static Vec pairs(Vec first, Vec second) {
    const __m512i low = _mm512_cvtepu16_epi32(first.narrow()), high = _mm512_cvtepu16_epi32(second.narrow());
    return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)))};
  }
  // Of two registers of bfloat16 the first or second half of each, as words of one of either.
  static Vec interleaved(Vec a, Vec b, int half) {
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i from_a = _mm512_add_epi32(steps, _mm512_set1_epi32(16 * half));
    const __m512i from_b = _mm512_slli_epi32(_mm512_add_epi32(from_a, _mm512_set1_epi32(32)), 16);
    const __m512i order = _mm512_or_si512(from_a, from_b);
    return {_mm512_castsi512_ps(_mm512_permutex2var_epi16(_mm512_castps_si512(a.v), order, _mm512_castps_si512(b.v)))};
  }
#else
  using Factor = float;
  static constexpr int kPerWord = 1;
  Vec dot(Vec a, Vec b) const { return fma(a, b); }
#endif
  // NaN stays NaN: max and min return their second operand if either is NaN.
  Vec clamp(Vec lo, Vec hi) const { return {_mm512_min_ps(hi.v, _mm512_max_ps(lo.v, v))}; }
  // The larger; NaN if either is.
  Vec max(Vec b) const { return {_mm512_mask_max_ps(v, _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v, b.v)}; }
  // This where !(y <= lo || y >= hi), else 0.
  Vec unless_blocked(Vec y, Vec lo, Vec hi) const {
    const __mmask16 blocked = _mm512_cmp_ps_mask(y.v, lo.v, _CMP_LE_OQ) | _mm512_cmp_ps_mask(y.v, hi.v, _CMP_GE_OQ);
    return {_mm512_maskz_mov_ps(static_cast<__mmask16>(~blocked), v)};
  }
  bool any_nan() const { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }
  float sum() const { return _mm512_reduce_add_ps(v); }

  // A square of kWidth rows becomes its transpose: pairs, then fours, then the 128-bit quarters change places.
  static void transpose(Vec (&row)[kWidth]) {
    __m512 fours[kWidth];
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; i += 4) {
      const __m512 a = _mm512_unpacklo_ps(row[i].v, row[i + 1].v), b = _mm512_unpackhi_ps(row[i].v, row[i + 1].v);
      const __m512 c = _mm512_unpacklo_ps(row[i + 2].v, row[i + 3].v);
      const __m512 d = _mm512_unpackhi_ps(row[i + 2].v, row[i + 3].v);
      fours[i] = _mm512_shuffle_ps(a, c, 0x44), fours[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      fours[i + 2] = _mm512_shuffle_ps(b, d, 0x44), fours[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512 a = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0x88);
      const __m512 b = _mm512_shuffle_f32x4(fours[i], fours[i + 4], 0xdd);
      const __m512 c = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0x88);
      const __m512 d = _mm512_shuffle_f32x4(fours[i + 8], fours[i + 12], 0xdd);
      row[i].v = _mm512_shuffle_f32x4(a, c, 0x88), row[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
      row[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd), row[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }

 private:
  static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Vec widen(__m256i half) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))}; }
#ifdef __AVX512BF16__
  __m256i narrow() const { return (__m256i)_mm512_cvtneps_pbh(v); }
#else
  // Round to nearest, ties to even. A NaN here is the processor's or one of a bfloat16: rounding cannot carry it over.
  __m256i narrow() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
#endif
};

}  // namespace
}  // namespace pyserve
