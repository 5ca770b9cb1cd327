// Tensor core instructions of a warpgroup (sm_90a): wgmma, as PTX and, for tests, as software.
//
// A warpgroup multiplies 64 rows: warp w of it has rows 16 w to 16 w + 15 of A and D, in the fragments of mma.m16n8k16
// (ptx_mma.hpp), D one after another for 8 columns each. What comes from shared memory are panels: rows of 128 bytes (64
// elements), one after another, beginning at a multiple of 1024, the 16-byte chunks of row r at chunk ^ (r % 8) ("128-byte
// swizzle").
#pragma once

#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

#if defined(MASKATTN_EMULATE_CUDA)
#include "cuda/emulated/wgmma.hpp"
#endif

namespace maskattn::cuda {

inline constexpr int kPanelColumns = 64, kPanelRowBytes = 128;

// Which way an operand's coordinate k, over which products are summed, runs in its panel: along a row (keys, for scores), or from
// row to row (values).
enum class PanelDepth { along_rows, across_rows };

// The panel `offset` bytes from `panel` on, from the 16 `step`-th k on, as PTX ISA's "Matrix descriptor format" of wgmma has it:
// the address, leading and stride byte offset in units of 16 bytes, swizzle mode 1 (128 bytes) in the highest two bits. The
// stride is that of 8 rows; the leading offset has no meaning for operands of 64. The upper word is a constant, which saves
// registers.
__device__ inline std::uint64_t panel_descriptor(std::uint32_t panel, int offset, PanelDepth depth, int step) {
  constexpr std::uint32_t kUpper = 8 * kPanelRowBytes >> 4 | 1u << 30, kLower = 1u << 16;
  const int along = (depth == PanelDepth::along_rows ? 32 : 16 * kPanelRowBytes) * step;
  return static_cast<std::uint64_t>(kUpper) << 32 | (kLower + (panel >> 4) + static_cast<std::uint32_t>((offset + along) >> 4));
}

#if defined(__CUDACC__)

// Before the first wgmma, and wherever threads have touched registers of A or D since. It orders registers only: what threads
// wrote to shared memory needs fence_for_async() (ptx_bulk.hpp).
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kGroups groups are under way.
template <int kGroups>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// Tells the compiler that products that it does not see may change these.
template <int kTiles>
__device__ inline void wgmma_registers(float (&d)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[j][i])::"memory");
}

#define MASKATTN_D4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define MASKATTN_D \
  MASKATTN_D4(0), MASKATTN_D4(1), MASKATTN_D4(2), MASKATTN_D4(3), MASKATTN_D4(4), MASKATTN_D4(5), MASKATTN_D4(6), MASKATTN_D4(7)
#define MASKATTN_WGMMA(types, rest)                                                                                            \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %32, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." types                                \
  " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, " \
  "%26, %27, %28, %29, %30, %31}, " rest "\n}"

// D = A B, or D += A B where `add`, of 64 x 16 and 16 x 64 16-bit floats; A in registers, B described.
template <Dtype kType, PanelDepth kDepth>
__device__ inline void wgmma_64x64x16(float (&d)[8][4], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  if constexpr (kType == Dtype::bfloat16)
    asm volatile(MASKATTN_WGMMA("bf16.bf16", "{%33, %34, %35, %36}, %37, p, 1, 1, %38;")
                 : MASKATTN_D
                 : "r"(static_cast<int>(add)), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
                   "n"(kDepth == PanelDepth::across_rows));
  else
    asm volatile(MASKATTN_WGMMA("f16.f16", "{%33, %34, %35, %36}, %37, p, 1, 1, %38;")
                 : MASKATTN_D
                 : "r"(static_cast<int>(add)), "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
                   "n"(kDepth == PanelDepth::across_rows));
}
// The same with A described, its k along rows.
template <Dtype kType, PanelDepth kDepth>
__device__ inline void wgmma_64x64x16(float (&d)[8][4], std::uint64_t a, std::uint64_t b, bool add) {
  if constexpr (kType == Dtype::bfloat16)
    asm volatile(MASKATTN_WGMMA("bf16.bf16", "%33, %34, p, 1, 1, 0, %35;")
                 : MASKATTN_D
                 : "r"(static_cast<int>(add)), "l"(a), "l"(b), "n"(kDepth == PanelDepth::across_rows));
  else
    asm volatile(MASKATTN_WGMMA("f16.f16", "%33, %34, p, 1, 1, 0, %35;")
                 : MASKATTN_D
                 : "r"(static_cast<int>(add)), "l"(a), "l"(b), "n"(kDepth == PanelDepth::across_rows));
}
#undef MASKATTN_WGMMA
#undef MASKATTN_D
#undef MASKATTN_D4

// Registers of the warpgroup's threads from here on, which others must have given up; a multiple of 8.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif

}  // namespace maskattn::cuda
