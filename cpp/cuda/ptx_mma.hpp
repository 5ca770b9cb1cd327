// Tensor core instructions of a warp (sm_80 on): mma.sync and ldmatrix, as PTX and, for tests, as software.
//
// Fragments, PTX ISA "Matrix fragments for mma.m16n8k16" (group g = lane / 4, t = lane % 4; two 16-bit elements a register, the
// first in the low half):
//   A 16 x 16  a[0] row g, columns 2t..  a[1] row g + 8  a[2] row g, columns 2t + 8..  a[3] row g + 8, columns 2t + 8..
//   B 16 x 8   b0 rows 2t.., column g    b1 rows 2t + 8..
//   D 16 x 8   d[0], d[1] row g, columns 2t, 2t + 1    d[2], d[3] row g + 8
// of mma.m16n8k8, the same without a[2], a[3] and b1; and of mma.m16n8k8 for tf32 (one element a register):
//   A 16 x 8   a[0] row g, column t  a[1] row g + 8  a[2] row g, column t + 4  a[3] row g + 8, column t + 4
//   B 8 x 8    b0 row t, column g    b1 row t + 4
#pragma once

#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

#if defined(MASKATTN_EMULATE_CUDA)
#include "cuda/emulated/mma.hpp"
#endif

namespace maskattn::cuda {

#if defined(__CUDACC__)

// D += A B of 16-bit floats, sums in float32.
template <Dtype kType>
__device__ inline void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  if constexpr (kType == Dtype::bfloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Half of that, for bfloat16.
__device__ inline void mma_16x8x8(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b0));
}

// D += A B of float32 numbers of which the unit reads the upper 19 bits.
__device__ inline void mma_16x8x8_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 rows of 16 bytes; lane 8 i + j names row j of matrix i. r[i] is word lane % 4 of row lane / 4 of matrix i.
__device__ inline void load_matrices(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}
// The same of 8 x 8 16-bit elements each, transposed.
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)));
}

// Two floats rounded to 16 bits, the first in the low half.
template <Dtype kType>
__device__ inline std::uint32_t pack_16(float low, float high) {
  std::uint32_t word;
  if constexpr (kType == Dtype::bfloat16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

#endif

}  // namespace maskattn::cuda
