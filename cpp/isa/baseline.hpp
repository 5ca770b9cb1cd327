// x86-64-v2 (SSE4.1) or any other machine with 16-byte vectors: no fused multiply-add, portable forms but for rounding.
#pragma once

#define MASKATTN_VECTOR_BYTES 16
#define MASKATTN_KEY_VECTORS 2  // vectors of keys (or of value columns) in a register tile
#include "../kernels/simd.hpp"

#if defined(__SSE4_1__)
#include <smmintrin.h>

namespace maskattn::MASKATTN_ISA {
namespace {
MASKATTN_INLINE F32 round_even(F32 x) { return (F32)_mm_round_ps((__m128)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
MASKATTN_INLINE F64 round_even(F64 x) { return (F64)_mm_round_pd((__m128d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
MASKATTN_INLINE std::uint64_t equal_bits(F32 x, F32 y) { return static_cast<unsigned>(_mm_movemask_ps((__m128)(x == y))); }
MASKATTN_INLINE std::uint64_t equal_bits(F64 x, F64 y) { return static_cast<unsigned>(_mm_movemask_pd((__m128d)(x == y))); }
}  // namespace
}  // namespace maskattn::MASKATTN_ISA
#endif
