// Plans made on the device: a program becomes rows of spans or bits, and these become lists of tiles. Nothing waits for the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/mask_words.hpp"
#include "cuda/plan.hpp"

namespace maskattn::cuda {

// A row of no more spans than this is kept as spans, any other as bits.
inline constexpr int kMostSpans = 4;

// Extents of a plan; batch and heads are 1 where sequences (heads) agree.
struct PlanExtents {
  int batch, heads, q_len, kv_len;
  int spans_per_row;  // 0: bits

  MASKATTN_HD int q_tiles() const { return q_len / kTile + (q_len % kTile != 0); }
  MASKATTN_HD int kv_tiles() const { return kv_len / kTile + (kv_len % kTile != 0); }
  MASKATTN_HD std::int64_t rows() const { return std::int64_t{batch} * heads * q_len; }
};

// Where rows stand, in the device's memory: [batch] each, or one for all where a plan has a batch of 1.
struct Positions {
  const std::int64_t *q_offset, *kv_lengths, *q_lengths;  // rows at or past q_lengths see nothing
  std::int64_t row_base;                                  // rows of the call in front of the plan's first
};

// A plan's arrays in one piece of memory, which begins at a multiple of 8.
struct PlanMemory {
  PlanExtents extents;
  TileEntry* tiles;
  int* tile_counts;
  Span* spans;
  std::uint64_t* bits;

  static std::size_t bytes(const PlanExtents& extents);
  PlanMemory(const PlanExtents& extents, void* memory);
  PlanView view() const;
};

void lower_rows(const ProgramView& program, const Positions& positions, const PlanMemory& plan, Stream stream);
// The tiles of rows that are there: writes `tiles` and `tile_counts`, which the view then leads to.
void list_tiles(const PlanView& plan, TileEntry* tiles, int* tile_counts, Stream stream);

// An array of the device of 32-bit or 64-bit integers.
struct GivenIntegers {
  const void* data;   // null: none is given
  bool wide;          // 64 bits
  std::int64_t step;  // from one sequence to the next; 0: one for all
};

// Writes [batch] each: lengths, cut to what there are, and offsets. Where none is given, lengths are q_len and kv_len, and
// offsets let the last query stand at the last key. `near` are offsets for biases, cut to +-2^30.
struct GivenPositions {
  GivenIntegers q_offset, kv_lengths, q_lengths;
};
struct TakenPositions {
  std::int64_t *q_offset, *kv_lengths, *q_lengths;
  int* near;

  static constexpr std::size_t kBytes = 4 * sizeof(std::int64_t);  // of a sequence
  TakenPositions(void* memory, int batch);
};
void take_positions(const GivenPositions& given, int batch, int q_len, int kv_len, const TakenPositions& taken, Stream stream);

// Writes starts[count] and lengths[count] of sequences one behind the other, from their count + 1 cumulative lengths: cut to
// `tokens`, and to `most` a sequence.
struct PackedRows {
  GivenIntegers ends;
  int tokens, most;
  std::int64_t *starts, *lengths;
};
void take_packed(const PackedRows& queries, const PackedRows& keys, int count, Stream stream);

// Host memory into the device's without waiting for the stream, however small pageable memory is treated.
void upload(void* to, const void* from, std::size_t bytes, Stream stream);

// Arrays [batch][heads][q_len][kv_len] of elements of 1, 2, 4 or 8 bytes, the patterns `shown` and `hidden`, contiguous.
void fill(const PlanView& plan, int batch, int heads, void* out, int element_bytes, std::uint64_t shown, std::uint64_t hidden,
          Stream stream);
// [batch][heads][q_len][(kv_len + 7) / 8] bytes: bit j of byte i for key 8 i + j.
void fill_bits(const PlanView& plan, int batch, int heads, std::uint8_t* out, Stream stream);

}  // namespace maskattn::cuda
