// Attention of many rows on tensor cores, from sm_80 on (arXiv:2307.08691): a block has two strips, keeps its queries in shared
// memory and its outputs in registers, and loads values while it multiplies keys, and the next keys while it multiplies values.
#pragma once

#include "cuda/fragment_output.hpp"
#include "cuda/mma_warp.hpp"
#include "cuda/strips.hpp"
#include "cuda/tile_widen.hpp"

namespace maskattn::cuda {

// attention_mma() over pages of int8.
void attention_mma_int8(const AttentionCall& call, Stream stream);

// Sizes of a block: 128 rows (one strip where shared memory holds no more), 64 keys (or 16) at a time. Two fragments of rows per
// warp halve the reads of shared memory for keys and values, where registers hold them. kModified: scores have a softcap or a
// bias.
template <class Operands, int kDim, bool kModified>
struct MmaShape {
  static constexpr int kElementBytes = Operands::kElementBytes, kRowBytes = kDim * kElementBytes;
  static constexpr bool kWide = kElementBytes == 4;
  static constexpr int kStrips = kRowBytes > 512 ? 1 : 2, kRows = kStrips * kTile;
  static constexpr int kKeys = kRowBytes > 512 ? 16 : 64, kParts = kTile / kKeys;
  static constexpr int kRowTiles = !kWide && !kModified && kDim <= 128 ? 2 : 1, kRowsPerWarp = 16 * kRowTiles;
  static constexpr int kWarps = kRows / kRowsPerWarp, kThreads = 32 * kWarps;
};

template <class Shape>
struct MmaShared {
  char q[Shape::kRows * Shape::kRowBytes], k[Shape::kKeys * Shape::kRowBytes], v[Shape::kKeys * Shape::kRowBytes];
  std::uint64_t visible[2][Shape::kRows];    // of this tile and the next: the keys that each row sees,
  std::uint64_t seen[2][Shape::kRows / 32];  // and that some of 32 rows see
  SharedTile tile[2];
  // What every thread would keep in registers of its own otherwise.
  TileWalk<Shape::kStrips> walk;
  RowsAt keys, values, key_scales, value_scales;
};

struct MmaCall {
  AttentionCall call;
  ScoreTerms terms;
  bool aligned_q, aligned_k, aligned_v, pairs;
};

// Where a block's strips are. Last strips come first, which see most under a causal mask, and blocks of a key head together, so
// that its keys stay in the second-level cache.
struct MmaPlace {
  int b, kv_head, first_strip;
};
template <class Shape>
__device__ MmaPlace place_of_block(const AttentionCall& call) {
  const int strips = call.plan.q_tiles * (call.q_heads / call.kv_heads), blocks = (strips + Shape::kStrips - 1) / Shape::kStrips;
  const int block = static_cast<int>(blockIdx.x), head = block / blocks;
  return {head / call.kv_heads, head % call.kv_heads, (blocks - 1 - block % blocks) * Shape::kStrips};
}

// What the block's rows see of the tile in `slot`, unless that is everything.
template <class Shape, bool kModified>
__device__ void look(const AttentionCall& call, MmaPlace place, MmaShared<Shape>& shared, int slot) {
  const int row = static_cast<int>(threadIdx.x), s = row / kTile;
  const SharedTile tile = shared.tile[slot];
  if (tile.none() || (!kModified && tile.full == shared.walk.kAll) || row >= Shape::kRows) return;
  const Strip strip = strip_of(call, place.kv_head, place.first_strip + s);
  const std::uint64_t word = tile.existing() & visible_keys(call, tile, place.b, strip, s, row % kTile);
  shared.visible[slot][row] = word;
  const std::uint32_t low = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(word));
  const std::uint32_t high = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(word >> 32));
  if (row % 32 == 0) shared.seen[slot][row / 32] = static_cast<std::uint64_t>(high) << 32 | low;
}

template <class Shape>
__device__ void load_queries(const MmaCall& mma, MmaPlace place, char* to) {
  constexpr int kElementBytes = Shape::kElementBytes;
  const AttentionCall& call = mma.call;
  const int queries = queries_of(call, place.b);
  copy_tile<kElementBytes, Shape::kRows, Shape::kRowBytes, Shape::kThreads>(
      to, call.q.data, call.head_dim * kElementBytes, mma.aligned_q, [&](int row) -> const char* {
        const Strip strip = strip_of(call, place.kv_head, place.first_strip + row / kTile);
        const int query = strip.q_tile * kTile + row % kTile;
        return query < queries ? rows_at<kElementBytes>(call.q, call, false, place.b, strip.head)(query) : nullptr;
      });
}

// Keys or values of the tile in `slot`; those that no row of the block sees are zeros and not read.
template <class Shape, Dtype kType, class Stored>
__device__ void load_tile(const MmaShared<Shape>& shared, char* to, const RowsAt& rows, const RowsAt& scales, int columns,
                          bool aligned, int slot, int part) {
  const SharedTile tile = shared.tile[slot];
  std::uint64_t seen = 0;
#pragma unroll
  for (int i = 0; i < Shape::kRows / 32; ++i) seen |= shared.seen[slot][i];
  if (tile.full == shared.walk.kAll) seen = ~std::uint64_t{0};
  seen >>= part * Shape::kKeys;
  const int first = tile.kv_tile * kTile + part * Shape::kKeys;
  const auto address = [&](int row) { return seen >> row & 1 ? rows(first + row) : nullptr; };
  if constexpr (std::is_same_v<Stored, std::int8_t>)
    widen_tile<kType, Shape::kKeys, Shape::kRowBytes, Shape::kThreads>(
        to, columns, aligned, address, [&](int row) { return *reinterpret_cast<const float*>(scales(first + row)); });
  else
    copy_tile<Shape::kElementBytes, Shape::kKeys, Shape::kRowBytes, Shape::kThreads>(
        to, rows.base, columns * Shape::kElementBytes, aligned, address);
  commit_copies();
}
template <class Shape, Dtype kType, class Stored>
__device__ void load_keys(const MmaCall& mma, MmaShared<Shape>& shared, int slot, int part) {
  load_tile<Shape, kType, Stored>(shared, shared.k, shared.keys, shared.key_scales, mma.call.head_dim, mma.aligned_k, slot, part);
}
template <class Shape, Dtype kType, class Stored>
__device__ void load_values(const MmaCall& mma, MmaShared<Shape>& shared, int slot, int part) {
  load_tile<Shape, kType, Stored>(shared, shared.v, shared.values, shared.value_scales, mma.call.v_head_dim, mma.aligned_v, slot,
                                  part);
}

// Scores as the softmax takes them: of the tile in `slot`, for the warp whose rows begin at first_row of the block.
template <class Shape, bool kModified>
__device__ void show(const MmaCall& mma, MmaPlace place, const MmaShared<Shape>& shared, int slot, int part, int first_row,
                     float (&s)[Shape::kRowTiles][Shape::kKeys / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < Shape::kRowTiles; ++m) {
    const int row = first_row + 16 * m + lane / 4;
    const std::uint64_t upper = shared.visible[slot][row] >> (part * Shape::kKeys);
    const std::uint64_t lower = shared.visible[slot][row + 8] >> (part * Shape::kKeys);
    if constexpr (kModified) {
      const Strip strip = strip_of(mma.call, place.kv_head, place.first_strip + row / kTile);
      const FragmentPlace at = {place.b, strip.head, strip.q_tile * kTile + row % kTile,
                                shared.tile[slot].kv_tile * kTile + part * Shape::kKeys + 2 * (lane % 4)};
      finish_scores(mma.call, mma.terms, s[m], at, upper, lower);
    } else {
      hide(s[m], upper, lower);
    }
  }
}

// Stored: the type of keys and values in memory, int8 or the queries' own.
template <class Operands, int kDim, bool kModified, Dtype kType, class Stored>
__global__ void __launch_bounds__(MmaShape<Operands, kDim, kModified>::kThreads, 1)
    mma_kernel(const __grid_constant__ MmaCall mma) {
  using Shape = MmaShape<Operands, kDim, kModified>;
  const AttentionCall& call = mma.call;
  MmaShared<Shape>& shared = *dynamic_shared<MmaShared<Shape>>();
  const MmaPlace place = place_of_block<Shape>(call);
  const int first_row = static_cast<int>(threadIdx.x) / 32 * Shape::kRowsPerWarp, s = first_row / kTile;  // of this warp

  load_queries<Shape>(mma, place, shared.q);
  if (threadIdx.x == 0) {
    shared.keys = rows_at<sizeof(Stored)>(call.k, call, true, place.b, place.kv_head);
    shared.values = rows_at<sizeof(Stored)>(call.v, call, true, place.b, place.kv_head);
    if constexpr (std::is_same_v<Stored, std::int8_t>) {
      shared.key_scales = scales_at(call.k_scales, call, place.b, place.kv_head);
      shared.value_scales = scales_at(call.v_scales, call, place.b, place.kv_head);
    }
    shared.walk.begin(call, place.b, place.kv_head, place.first_strip);
    for (SharedTile& tile : shared.tile) tile = shared.walk.next();
  }
  __syncthreads();
  look<Shape, kModified>(call, place, shared, 0);
  __syncthreads();
  if (!shared.tile[0].none()) load_keys<Shape, kType, Stored>(mma, shared, 0, 0);

  MmaWarp<Operands, kDim, Shape::kKeys, Shape::kRowTiles> warp;
  warp.clear();
  for (int slot = 0; !shared.tile[slot].none(); slot ^= 1) {
    const bool mine = shared.tile[slot].seen >> s & 1, full = shared.tile[slot].full >> s & 1;
#pragma unroll 1
    for (int part = 0; part < Shape::kParts; ++part) {
      wait_copies<0>();
      __syncthreads();  // keys are here, and all are done with the values before
      load_values<Shape, kType, Stored>(mma, shared, slot, part);
      if (mine) {
        warp.multiply_keys(shared.q, first_row, shared.k);
        if (kModified || !full) show<Shape, kModified>(mma, place, shared, slot, part, first_row, warp.s);
        warp.template softmax<Shape::kWide>(mma.terms.log2);
      }
      const bool last = part == Shape::kParts - 1;
      if (last) look<Shape, kModified>(call, place, shared, slot ^ 1);
      wait_copies<0>();
      __syncthreads();  // values are here, and all are done with the keys and with this tile
      const int next = last ? slot ^ 1 : slot;
      if (!shared.tile[next].none()) load_keys<Shape, kType, Stored>(mma, shared, next, last ? 0 : part + 1);
      if (last && threadIdx.x == 0) shared.tile[slot] = shared.walk.next();
      if (mine) warp.multiply_values(shared.v);
    }
  }
  commit_copies();
  wait_copies<0>();  // of queries, where there was no tile
#pragma unroll
  for (int m = 0; m < Shape::kRowTiles; ++m) {
    const Strip strip = strip_of(call, place.kv_head, place.first_strip + s);
    const int query = strip.q_tile * kTile + first_row % kTile + 16 * m + static_cast<int>(threadIdx.x) % 32 / 4;
    const unsigned odd = store_rows<kType>(call, place.b, strip.head, query, mma.pairs, warp.o[m], warp.rows[m]);
    static_assert(sizeof(shared.q) >= Shape::kWarps * sizeof(PlainRowMemory));  // which nobody needs any more
    PlainRowMemory* const memory = reinterpret_cast<PlainRowMemory*>(shared.q) + threadIdx.x / 32;
    repair_rows<kType, Stored>(call, mma.terms, place.b, strip.head, query, odd, *memory);
  }
}

template <class Operands, int kDim, bool kModified, Dtype kType, class Stored>
void launch_shape(const AttentionCall& call, Stream stream) {
  using Shape = MmaShape<Operands, kDim, kModified>;
  constexpr int kElementBytes = Operands::kElementBytes;
  const MmaCall mma = {call,
                       score_terms(call),
                       rows_are_aligned<kElementBytes>(call.q),
                       rows_are_aligned<kElementBytes>(call.k),
                       rows_are_aligned<kElementBytes>(call.v),
                       rows_have_pairs<kElementBytes>(call.out, call.v_head_dim)};
  const std::int64_t blocks = (strips_per_kv_head(call) + Shape::kStrips - 1) / Shape::kStrips;
  launch(mma_kernel<Operands, kDim, kModified, kType, Stored>, blocks * call.kv_heads * call.batch, dim3(Shape::kThreads),
         sizeof(MmaShared<Shape>), stream, mma);
}

}  // namespace maskattn::cuda
