// x86-64-v4: 64-byte vectors, mask registers, and powers of two in one instruction.
#pragma once

#define MASKATTN_VECTOR_BYTES 64
#define MASKATTN_KEY_VECTORS 4  // 6 x 4 accumulators, four keys and a query: 29 of 32 registers
#include <immintrin.h>
#include "../kernels/simd.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {
MASKATTN_INLINE F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
MASKATTN_INLINE F64 fma(F64 a, F64 b, F64 c) { return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
MASKATTN_INLINE F32 vmax(F32 a, F32 b) { return (F32)_mm512_max_ps((__m512)a, (__m512)b); }
MASKATTN_INLINE F64 vmax(F64 a, F64 b) { return (F64)_mm512_max_pd((__m512d)a, (__m512d)b); }
MASKATTN_INLINE F32 vmin(F32 a, F32 b) { return (F32)_mm512_min_ps((__m512)a, (__m512)b); }
MASKATTN_INLINE F64 vmin(F64 a, F64 b) { return (F64)_mm512_min_pd((__m512d)a, (__m512d)b); }
MASKATTN_INLINE F32 round_even(F32 x) { return (F32)_mm512_roundscale_ps((__m512)x, 0); }
MASKATTN_INLINE F64 round_even(F64 x) { return (F64)_mm512_roundscale_pd((__m512d)x, 0); }
MASKATTN_INLINE F32 half_to_float(U16 x) { return (F32)_mm512_cvtph_ps((__m256i)x); }
MASKATTN_INLINE U16 float_to_half(F32 x) {
  return (U16)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MASKATTN_INLINE I32 zero_extend(U16 x) { return (I32)_mm512_cvtepu16_epi32((__m256i)x); }
MASKATTN_INLINE F32 low_half_to_float(I32 x) { return (F32)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)x)); }
MASKATTN_INLINE F32 bytes_to_float(I8 x) { return (F32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)x)); }
MASKATTN_INLINE F32 load_first(const float* p, int count) {
  return (F32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
MASKATTN_INLINE F64 load_first(const double* p, int count) {
  return (F64)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
}
MASKATTN_INLINE F32 keep(F32 x, std::uint64_t bits, F32 otherwise) {
  return (F32)_mm512_mask_mov_ps((__m512)otherwise, static_cast<__mmask16>(bits), (__m512)x);
}
MASKATTN_INLINE F64 keep(F64 x, std::uint64_t bits, F64 otherwise) {
  return (F64)_mm512_mask_mov_pd((__m512d)otherwise, static_cast<__mmask8>(bits), (__m512d)x);
}
MASKATTN_INLINE std::uint64_t equal_bits(F32 x, F32 y) { return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_EQ_OQ); }
MASKATTN_INLINE std::uint64_t equal_bits(F64 x, F64 y) { return _mm512_cmp_pd_mask((__m512d)x, (__m512d)y, _CMP_EQ_OQ); }
MASKATTN_INLINE F32 times_pow2(F32 p, F32 k) {
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)k, _mm512_set1_ps(-126.f), _CMP_NLE_UQ);
  return (F32)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)k);
}
MASKATTN_INLINE F64 times_pow2(F64 p, F64 k) {
  const __mmask8 normal = _mm512_cmp_pd_mask((__m512d)k, _mm512_set1_pd(-1022.), _CMP_NLE_UQ);
  return (F64)_mm512_maskz_scalef_pd(normal, (__m512d)p, (__m512d)k);
}
// Rows i, i + 4, i + 8, i + 12 are laid in the four quarters of a vector as they are loaded; what is left are 4 x 4 transposes
// inside the quarters: half the shuffles of the portable form.
MASKATTN_INLINE void load_words(const char* p, std::ptrdiff_t stride, F32 (&words)[4]) {
  __m512 row[4];
  MASKATTN_UNROLLED(j, 4) {
    const char* quarter = p + 4 * j * stride;
    __asm__("" : "+r"(quarter));  // or g++ keeps sixteen addresses, most of them on the stack
    MASKATTN_UNROLLED(i, 4) {
      const __m128 x = _mm_loadu_ps(reinterpret_cast<const float*>(quarter + i * stride));
      row[i] = j == 0 ? _mm512_castps128_ps512(x) : _mm512_mask_broadcast_f32x4(row[i], static_cast<__mmask16>(0xf << 4 * j), x);
    }
  }
  const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
  const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
  const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3]));
  const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
  words[0] = (F32)_mm512_unpacklo_pd(low01, low23);
  words[1] = (F32)_mm512_unpackhi_pd(low01, low23);
  words[2] = (F32)_mm512_unpacklo_pd(high01, high23);
  words[3] = (F32)_mm512_unpackhi_pd(high01, high23);
}
MASKATTN_INLINE void load_transposed(const float* p, std::ptrdiff_t stride, F32 (&x)[16]) {
  MASKATTN_UNROLLED(quarter, 4) {
    F32 words[4];
    load_words(reinterpret_cast<const char*>(p + 4 * quarter), stride * 4, words);
    MASKATTN_UNROLLED(i, 4) x[4 * quarter + i] = words[i];
  }
}
}  // namespace
}  // namespace maskattn::MASKATTN_ISA
