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
MASKATTN_INLINE F32 round_even(F32 x) { return (F32)_mm512_roundscale_ps((__m512)x, 0); }
MASKATTN_INLINE F64 round_even(F64 x) { return (F64)_mm512_roundscale_pd((__m512d)x, 0); }
MASKATTN_INLINE F32 load_first(const float* p, int count) {
  return (F32)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
}
MASKATTN_INLINE F64 load_first(const double* p, int count) {
  return (F64)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
}
MASKATTN_INLINE F32 keep(F32 x, std::uint64_t bits) {
  const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
  return (F32)_mm512_mask_mov_ps(hidden, static_cast<__mmask16>(bits), (__m512)x);
}
MASKATTN_INLINE F64 keep(F64 x, std::uint64_t bits) {
  const __m512d hidden = _mm512_set1_pd(-__builtin_inf());
  return (F64)_mm512_mask_mov_pd(hidden, static_cast<__mmask8>(bits), (__m512d)x);
}
MASKATTN_INLINE F32 times_pow2(F32 p, F32 k) {
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)k, _mm512_set1_ps(-126.f), _CMP_NLE_UQ);
  return (F32)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)k);
}
MASKATTN_INLINE F64 times_pow2(F64 p, F64 k) {
  const __mmask8 normal = _mm512_cmp_pd_mask((__m512d)k, _mm512_set1_pd(-1022.), _CMP_NLE_UQ);
  return (F64)_mm512_maskz_scalef_pd(normal, (__m512d)p, (__m512d)k);
}
}  // namespace
}  // namespace maskattn::MASKATTN_ISA
