// The tiles of AMX in software, bit for bit, for tests of its kernels on machines without it (-DMASKATTN_EMULATE_AMX=ON).
// Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and TDPBUSD.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

struct Tiles {
  alignas(64) std::uint32_t row[8][16][16];
  int rows[8];
};
inline thread_local Tiles tiles;

// Denormal operands and results count as zero in these instructions whatever the program's mode is.
struct FlushDenormals {
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
};

// A tile that was not configured anew, or was left from another thread, must not go unnoticed: it is all NaN.
inline void tiles_configure(const TileConfiguration& configuration = {}) {
  std::memset(&tiles, 0xff, sizeof tiles);
  for (int i = 0; i < 8; ++i) tiles.rows[i] = configuration.rows[i];
}
inline void tiles_release() { std::memset(&tiles, 0xff, sizeof tiles); }

template <int Tile>
void tile_zero() {
  std::memset(tiles.row[Tile], 0, sizeof tiles.row[Tile]);
}
template <int Tile>
void tile_load(const void* from, std::ptrdiff_t bytes_per_row) {
  for (int r = 0; r < tiles.rows[Tile]; ++r)
    std::memcpy(tiles.row[Tile][r], static_cast<const char*>(from) + r * bytes_per_row, 64);
}
template <int Tile>
void tile_stream(const void* from, std::ptrdiff_t bytes_per_row) {
  tile_load<Tile>(from, bytes_per_row);
}
template <int Tile>
void tile_store(void* to, std::ptrdiff_t bytes_per_row) {
  for (int r = 0; r < tiles.rows[Tile]; ++r) std::memcpy(static_cast<char*>(to) + r * bytes_per_row, tiles.row[Tile][r], 64);
}

// Two chains of fused multiply-adds, over the even and over the odd elements, whose sum is added.
template <int Sum, int Left, int Right>
__attribute__((noinline)) void tile_multiply() {
  const FlushDenormals mode;
  const int upper = static_cast<int>(0xffff0000u);
  for (int r = 0; r < tiles.rows[Sum]; ++r) {
    F32 even = {}, odd = {};
    for (int k = 0; k < 16; ++k) {
      I32 b;
      std::memcpy(&b, tiles.row[Right][k], sizeof b);
      const I32 a = I32{} + static_cast<int>(tiles.row[Left][r][k]);
      even = fma((F32)(a << 16), (F32)(b << 16), even);
      odd = fma((F32)(a & upper), (F32)(b & upper), odd);
    }
    F32 sum;
    std::memcpy(&sum, tiles.row[Sum][r], sizeof sum);
    sum += even + odd;
    std::memcpy(tiles.row[Sum][r], &sum, sizeof sum);
  }
}

template <int Sum, int Left, int Right>
__attribute__((noinline)) void tile_multiply_bytes() {
  for (int r = 0; r < tiles.rows[Sum]; ++r) {
    I32 sum;
    std::memcpy(&sum, tiles.row[Sum][r], sizeof sum);
    for (int k = 0; k < 16; ++k) {
      I32 b;
      std::memcpy(&b, tiles.row[Right][k], sizeof b);
      sum = dot_bytes(sum, I32{} + static_cast<int>(tiles.row[Left][r][k]), b);
    }
    std::memcpy(tiles.row[Sum][r], &sum, sizeof sum);
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
