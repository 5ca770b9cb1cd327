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
MASKATTN_INLINE I32 zero_extend(U16 x) { return (I32)_mm256_cvtepu16_epi32((__m128i)x); }
MASKATTN_INLINE F32 bytes_to_float(I8 x) {
  long long bytes;
  std::memcpy(&bytes, &x, sizeof bytes);
  return (F32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes)));
}
MASKATTN_INLINE F32 half_to_float(U16 x) { return (F32)_mm256_cvtph_ps((__m128i)x); }
MASKATTN_INLINE F32 low_half_to_float(I32 x) {  // the lower halves of all lanes side by side, then converted
  const __m256i kept = _mm256_and_si256((__m256i)x, _mm256_set1_epi32(0xffff));
  return half_to_float((U16)_mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1)));
}
MASKATTN_INLINE U16 float_to_half(F32 x) { return (U16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
// Rows i and i + 4 are laid in the halves of a vector as they are loaded; what is left are 4 x 4 transposes inside the halves.
MASKATTN_INLINE void load_words(const char* p, std::ptrdiff_t stride, F32 (&words)[4]) {
  __m256 row[4];
  MASKATTN_UNROLLED(i, 4) {
    const float* low = reinterpret_cast<const float*>(p + i * stride);
    const float* high = reinterpret_cast<const float*>(p + (i + 4) * stride);
    row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
  }
  const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(row[0], row[1]));
  const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(row[0], row[1]));
  const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(row[2], row[3]));
  const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(row[2], row[3]));
  words[0] = (F32)_mm256_unpacklo_pd(low01, low23);
  words[1] = (F32)_mm256_unpackhi_pd(low01, low23);
  words[2] = (F32)_mm256_unpacklo_pd(high01, high23);
  words[3] = (F32)_mm256_unpackhi_pd(high01, high23);
}
MASKATTN_INLINE void load_transposed(const float* p, std::ptrdiff_t stride, F32 (&x)[8]) {
  MASKATTN_UNROLLED(half, 2) {
    F32 words[4];
    load_words(reinterpret_cast<const char*>(p + 4 * half), stride * 4, words);
    MASKATTN_UNROLLED(i, 4) x[4 * half + i] = words[i];
  }
}
}  // namespace
}  // namespace maskattn::MASKATTN_ISA
