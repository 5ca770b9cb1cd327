// AVX-512 and the tiles of AMX: 16 x 16 sums of 32 products of bfloat16 numbers in one instruction.
#pragma once

#include "avx512_bf16.hpp"

#undef MASKATTN_TILES
#undef MASKATTN_MATRICES
#define MASKATTN_TILES "tiles_amx.hpp"
#define MASKATTN_MATRICES nullptr, &matrix_table<1>, &matrix_table<2>, &matrix_table<3>

#define MASKATTN_LINEAR_TILES  // bfloat16 and 8-bit weights are multiplied on tiles

namespace maskattn::MASKATTN_ISA {
namespace {
struct TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);
}  // namespace
}  // namespace maskattn::MASKATTN_ISA

#if MASKATTN_EMULATE_AMX
#include "amx_emulated.hpp"
#else

namespace maskattn::MASKATTN_ISA {
namespace {

// Assembly because g++ 12's _tile_loadconfig tells the compiler of 8 of the 64 bytes that it reads, and its tile intrinsics take
// literals only.
MASKATTN_INLINE void tiles_configure(const TileConfiguration& configuration = {}) {
  asm volatile("ldtilecfg %0" : : "m"(configuration));
}
MASKATTN_INLINE void tiles_release() { asm volatile("tilerelease"); }

template <int Tile>
MASKATTN_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
template <int Tile>
MASKATTN_INLINE void tile_load(const void* from, std::ptrdiff_t bytes_per_row) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(Tile), "r"(from), "r"(bytes_per_row) : "memory");
}
// The same for what is read once for many rows: it should not push what is written now out of the first-level cache.
template <int Tile>
MASKATTN_INLINE void tile_stream(const void* from, std::ptrdiff_t bytes_per_row) {
  asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" : : "i"(Tile), "r"(from), "r"(bytes_per_row) : "memory");
}
template <int Tile>
MASKATTN_INLINE void tile_store(void* to, std::ptrdiff_t bytes_per_row) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(Tile), "r"(to), "r"(bytes_per_row) : "memory");
}
template <int Sum, int Left, int Right>
MASKATTN_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Left), "i"(Right));
}

// Sums of four products of bytes, those of Left unsigned, those of Right signed.
template <int Sum, int Left, int Right>
MASKATTN_INLINE void tile_multiply_bytes() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Left), "i"(Right));
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
#endif
