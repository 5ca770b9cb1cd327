// What CUDA kernels read of a mask that was lowered for one geometry: all of it in the device's memory, passed by value.
#pragma once

#include <cstdint>

#include "cuda/portable.hpp"
#include "maskattn/mask.hpp"

namespace maskattn::cuda {

// Query rows and keys that a tile of the plan has.
inline constexpr int kTile = 64;

// A tile that some row sees a key of: which one, and whether each of its rows sees all of its keys.
struct TileEntry {
  std::uint32_t word;
  MASKATTN_HD int kv_tile() const { return static_cast<int>(word >> 1); }
  MASKATTN_HD bool full() const { return word & 1; }
};

// Extents are those stored: 1 where sequences (heads) agree. Rows are spans, or bits where spans_per_row is 0.
struct PlanView {
  int batch, heads, q_len, kv_len, q_tiles, kv_tiles;
  const TileEntry* tiles;     // [batch][heads][q_tiles][kv_tiles], ascending, the first tile_counts of each list
  const int* tile_counts;     // [batch][heads][q_tiles]
  const Span* spans;          // [batch][heads][q_len][spans_per_row], ascending, empty ones ({0, 0}) last
  const std::uint64_t* bits;  // [batch][heads][q_len][kv_tiles]: bit j of word t for key 64 t + j
  int spans_per_row;

  MASKATTN_HD std::int64_t strip(int b, int h) const {
    return static_cast<std::int64_t>(batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : h);
  }
  MASKATTN_HD const TileEntry* tiles_of(int b, int h, int q_tile) const {
    return tiles + (strip(b, h) * q_tiles + q_tile) * kv_tiles;
  }
  MASKATTN_HD int tile_count(int b, int h, int q_tile) const { return tile_counts[strip(b, h) * q_tiles + q_tile]; }

  // The keys of a tile that a row sees, bit j for key 64 kv_tile + j.
  MASKATTN_HD std::uint64_t visible(int b, int h, int row, int kv_tile) const {
    const std::int64_t at = strip(b, h) * q_len + row;
    if (spans_per_row == 0) return bits[at * kv_tiles + kv_tile];
    std::uint64_t word = 0;
    for (int s = 0; s < spans_per_row; ++s) word |= keys_between(spans[at * spans_per_row + s], kv_tile);
    return word;
  }

  MASKATTN_HD static std::uint64_t keys_between(Span span, int kv_tile) {
    const int first = kv_tile * kTile;
    const int begin = span.begin > first ? span.begin - first : 0;
    const int end = span.end - first < kTile ? span.end - first : kTile;  // first + kTile may be 2^31
    return begin < end ? (~std::uint64_t{0} >> (kTile - (end - begin))) << begin : 0;
  }
};

}  // namespace maskattn::cuda
