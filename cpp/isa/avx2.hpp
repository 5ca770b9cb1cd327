// x86-64-v3: 32-byte vectors and fused multiply-add.
#pragma once

#define MASKATTN_VECTOR_BYTES 32
#define MASKATTN_KEY_VECTORS 2  // 6 x 2 accumulators, two keys and a query fill 15 of 16 registers
#include <immintrin.h>
#include "../kernels/simd.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {
MASKATTN_INLINE F32 fma(F32 a, F32 b, F32 c) { return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
MASKATTN_INLINE F64 fma(F64 a, F64 b, F64 c) { return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
MASKATTN_INLINE F32 vmax(F32 a, F32 b) { return (F32)_mm256_max_ps((__m256)a, (__m256)b); }
MASKATTN_INLINE F64 vmax(F64 a, F64 b) { return (F64)_mm256_max_pd((__m256d)a, (__m256d)b); }
MASKATTN_INLINE F32 vmin(F32 a, F32 b) { return (F32)_mm256_min_ps((__m256)a, (__m256)b); }
MASKATTN_INLINE F64 vmin(F64 a, F64 b) { return (F64)_mm256_min_pd((__m256d)a, (__m256d)b); }
MASKATTN_INLINE F32 round_even(F32 x) { return (F32)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
MASKATTN_INLINE F64 round_even(F64 x) { return (F64)_mm256_round_pd((__m256d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
MASKATTN_INLINE std::uint64_t equal_bits(F32 x, F32 y) { return static_cast<unsigned>(_mm256_movemask_ps((__m256)(x == y))); }
MASKATTN_INLINE std::uint64_t equal_bits(F64 x, F64 y) { return static_cast<unsigned>(_mm256_movemask_pd((__m256d)(x == y))); }
MASKATTN_INLINE F32 bytes_to_float(I8 x) {
  long long bytes;
  std::memcpy(&bytes, &x, sizeof bytes);
  return (F32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes)));
}
MASKATTN_INLINE F32 half_to_float(U16 x) { return (F32)_mm256_cvtph_ps((__m128i)x); }
MASKATTN_INLINE U16 float_to_half(F32 x) { return (U16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
}  // namespace
}  // namespace maskattn::MASKATTN_ISA
