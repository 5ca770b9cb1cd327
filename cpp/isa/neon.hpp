// ARM64: 16-byte vectors, fused multiply-add, 32 registers.
#pragma once

#define MASKATTN_VECTOR_BYTES 16
#define MASKATTN_KEY_VECTORS 4
#include <arm_neon.h>
#include "../kernels/simd.hpp"

namespace maskattn::MASKATTN_ISA {
namespace {
MASKATTN_INLINE F32 fma(F32 a, F32 b, F32 c) { return (F32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
MASKATTN_INLINE F64 fma(F64 a, F64 b, F64 c) { return (F64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
MASKATTN_INLINE F32 round_even(F32 x) { return (F32)vrndnq_f32((float32x4_t)x); }
MASKATTN_INLINE F64 round_even(F64 x) { return (F64)vrndnq_f64((float64x2_t)x); }
}  // namespace
}  // namespace maskattn::MASKATTN_ISA
