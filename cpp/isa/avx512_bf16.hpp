// AVX-512 with products of bfloat16 pairs: twice the multiplications of a float instruction on Zen 4 and 5.
#pragma once

#include "avx512.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {
MASKATTN_INLINE F32 dot_pairs(F32 sum, I32 a, I32 b) { return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
// Two vectors as one of bfloat16 numbers, rounded to nearest even.
MASKATTN_INLINE I32 round_to_bfloats(F32 low, F32 high) { return (I32)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
MASKATTN_INLINE I32 dot_bytes(I32 sum, I32 u, I32 s) { return (I32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s); }
}  // namespace
}  // namespace maskattn::MASKATTN_ISA

#define MASKATTN_BFLOAT_PAIRS  // bfloat16 weights are multiplied with activations rounded likewise
#define MASKATTN_TILES "tiles_dot.hpp"
#define MASKATTN_MATRICES nullptr, &matrix_table<1>, nullptr, nullptr
