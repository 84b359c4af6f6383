// Eight floats in an AVX2 register. Include only from *_avx2.cpp: everything is local to the including file, so that
// the linker can never hand AVX2 code to other files.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace pyserve {
namespace {

using Bf16 = uint16_t;  // the bits of a bfloat16: the upper half of a float's

struct Vec {
  using Factor = float;  // this and the next as in vec_avx512.h
  static constexpr int kWidth = 8, kPerWord = 1;
  static constexpr int kMostVectors = 2;  // per row of a register tile
  // Rows of a register tile with `vectors` vectors each: 12 of the 16 registers hold sums.
  static constexpr int rows(int vectors) { return vectors == 2 ? 6 : 12; }
  static constexpr int kFewTiles = 2;  // × six points of a spectrum's row: 12 of the 16 registers hold sums

  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set(float f) { return {_mm256_set1_ps(f)}; }

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const Bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  // The first n < kWidth elements, zeros behind them.
  static Vec load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first(n))}; }
  static Vec load(const Bf16* p, int64_t n) {
    alignas(16) Bf16 part[kWidth] = {};
    for (int64_t i = 0; i < n; ++i) part[i] = p[i];
    return load(part);
  }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(Bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow()); }
  void store(float* p, int64_t n) const { _mm256_maskstore_ps(p, first(n), v); }
  void store(Bf16* p, int64_t n) const {
    alignas(16) Bf16 part[kWidth];
    store(part);
    for (int64_t i = 0; i < n; ++i) p[i] = part[i];
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  Vec fma(Vec a, Vec b) const { return {_mm256_fmadd_ps(a.v, b.v, v)}; }    // this + a·b
  Vec fnma(Vec a, Vec b) const { return {_mm256_fnmadd_ps(a.v, b.v, v)}; }  // this − a·b
  Vec dot(Vec a, Vec b) const { return fma(a, b); }                         // as in vec_avx512.h
  // NaN stays NaN: max and min return their second operand if either is NaN.
  Vec clamp(Vec lo, Vec hi) const { return {_mm256_min_ps(hi.v, _mm256_max_ps(lo.v, v))}; }
  // The larger; NaN if either is.
  Vec max(Vec b) const { return {_mm256_blendv_ps(_mm256_max_ps(v, b.v), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q))}; }
  // This where !(y <= lo || y >= hi), else 0.
  Vec unless_blocked(Vec y, Vec lo, Vec hi) const {
    const __m256 blocked = _mm256_or_ps(_mm256_cmp_ps(y.v, lo.v, _CMP_LE_OQ), _mm256_cmp_ps(y.v, hi.v, _CMP_GE_OQ));
    return {_mm256_andnot_ps(blocked, v)};
  }
  bool any_nan() const { return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0; }
  float sum() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }

  // A square of kWidth rows becomes its transpose: pairs, then fours, then the 128-bit halves change places.
  static void transpose(Vec (&row)[kWidth]) {
    __m256 fours[kWidth];
#pragma GCC unroll 2
    for (int i = 0; i < kWidth; i += 4) {
      const __m256 a = _mm256_unpacklo_ps(row[i].v, row[i + 1].v), b = _mm256_unpackhi_ps(row[i].v, row[i + 1].v);
      const __m256 c = _mm256_unpacklo_ps(row[i + 2].v, row[i + 3].v);
      const __m256 d = _mm256_unpackhi_ps(row[i + 2].v, row[i + 3].v);
      fours[i] = _mm256_shuffle_ps(a, c, 0x44), fours[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
      fours[i + 2] = _mm256_shuffle_ps(b, d, 0x44), fours[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      row[i].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
      row[i + 4].v = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
  }

 private:
  static __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec widen(__m128i half) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))}; }
  // Round to nearest, ties to even. A NaN here is the processor's or one of a bfloat16: rounding cannot carry it over.
  __m128i narrow() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i upper = _mm256_srli_epi32(rounded, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
};

}  // namespace
}  // namespace pyserve
