// A block of attention_wgmma.cu: its shared memory, its work, and its producer.
#pragma once

#include "cuda/plain_row.hpp"
#include "cuda/ptx_bulk.hpp"
#include "cuda/ptx_wgmma.hpp"
#include "cuda/strips.hpp"

namespace maskattn::cuda {

// Three consumers where the registers of a multiprocessor hold the outputs of three strips; stages as many as shared memory
// holds, or are of use. kModified: scores have a softcap or a bias.
template <int kDim, bool kModified>
struct WgmmaShape {
  static constexpr int kConsumers = kDim == 64 && !kModified ? 3 : 2, kThreads = 128 * (1 + kConsumers),
                       kRows = kTile * kConsumers;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 152 : 232, kProducerRegisters = kConsumers == 3 ? 56 : 40;
  static constexpr int kPanels = kDim / kPanelColumns, kTileBytes = kTile * kDim * 2, kStages = kDim == 256 ? 2 : 4;
  static constexpr int kQueryBytes = kDim == 256 ? kConsumers * kTileBytes : 0;  // else in registers
};

// What the producer says of a stage beside its keys and values.
struct StageTile {
  SharedTile tile;
  std::uint64_t hidden;  // keys that no row of the block sees
};

template <class Shape>
struct WgmmaShared {
  // Panels, which begin at multiples of 1024.
  char k[Shape::kStages][Shape::kTileBytes], v[Shape::kStages][Shape::kTileBytes];
  char q[Shape::kQueryBytes == 0 ? 1024 : Shape::kQueryBytes];
  std::uint64_t keys_full[Shape::kStages], keys_empty[Shape::kStages], values_full[Shape::kStages], values_empty[Shape::kStages];
  StageTile tiles[Shape::kStages];
  TileWalk<Shape::kConsumers> walk;  // the producer's
  PlainRowMemory rows[4 * Shape::kConsumers];
};

struct WgmmaCall {
  AttentionCall call;
  ScoreTerms terms;
  int strips, blocks, works;  // of a key head: strips, blocks of strips; of the call: blocks
  int heads_at_once;          // (sequence, key head) pairs whose keys and values the second-level cache holds
  bool pairs;
};

struct WgmmaPlace {
  int b, kv_head, first_strip;
};

// The longest strips of a causal mask first; few heads at a time, so that their keys stay in the second-level cache.
template <class Shape>
__device__ WgmmaPlace place_of_work(const WgmmaCall& w, int work) {
  const int heads = w.call.batch * w.call.kv_heads, of_section = w.heads_at_once * w.blocks;
  const int section = work / of_section, first_head = section * w.heads_at_once;
  const int in_section = min(w.heads_at_once, heads - first_head), rest = work - section * of_section;
  const int head = first_head + rest % in_section, block = w.blocks - 1 - rest / in_section;
  return {head / w.call.kv_heads, head % w.call.kv_heads, block * Shape::kConsumers};
}

// A place in the ring, and how often the ring was gone round.
template <int kStages>
struct Ring {
  int stage = 0;
  unsigned parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Keys of the tile that no row of the block sees, by a warp.
template <class Shape>
__device__ std::uint64_t hidden_keys(const AttentionCall& call, WgmmaPlace place, const SharedTile& tile) {
  if (tile.full == TileWalk<Shape::kConsumers>::kAll) return 0;
  std::uint64_t seen = 0;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) % 32; row < Shape::kRows; row += 32) {
    const int s = row / kTile;
    seen |= visible_keys(call, tile, place.b, strip_of(call, place.kv_head, place.first_strip + s), s, row % kTile);
  }
  const std::uint32_t low = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(seen));
  const std::uint32_t high = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(seen >> 32));
  return ~(tile.existing() & (static_cast<std::uint64_t>(high) << 32 | low));
}

// Packed sequences are one to the copy engine. What it brings of a next one's keys, no row of the block sees.
template <class Shape>
__device__ void load_panels(char* to, const TensorMap& map, const AttentionCall& call, WgmmaPlace place, int kv_tile,
                            std::uint64_t* barrier) {
  const int first = kv_tile * kTile + (call.k.starts ? static_cast<int>(call.k.starts[place.b]) : 0);
  barrier_arrive_expect(barrier, Shape::kTileBytes);
#pragma unroll 1
  for (int n = 0; n < Shape::kPanels; ++n)
    copy_box(to + n * kTile * kPanelRowBytes, map, n * kPanelColumns, first, place.kv_head, call.k.starts ? 0 : place.b, barrier);
}

template <class Shape>
__device__ void produce(const WgmmaCall& w, const TensorMap& keys, const TensorMap& values, WgmmaShared<Shape>& shared) {
  const bool leader = threadIdx.x % 32 == 0;
  Ring<Shape::kStages> at;
#pragma unroll 1
  for (int work = static_cast<int>(blockIdx.x); work < w.works; work += static_cast<int>(gridDim.x)) {
    const WgmmaPlace place = place_of_work<Shape>(w, work);
    if (leader) shared.walk.begin(w.call, place.b, place.kv_head, place.first_strip);
    for (bool more = true; more; at.advance()) {
      barrier_wait(&shared.keys_empty[at.stage], at.parity ^ 1);
      StageTile& stage = shared.tiles[at.stage];
      if (leader) stage.tile = shared.walk.next();
      __syncwarp();
      const SharedTile tile = stage.tile;
      more = !tile.none();
      const std::uint64_t hidden = more ? hidden_keys<Shape>(w.call, place, stage.tile) : 0;
      if (!leader) continue;
      stage.hidden = hidden;
      if (!more) {
        barrier_arrive(&shared.keys_full[at.stage]);
        barrier_wait(&shared.values_empty[at.stage], at.parity ^ 1);
        barrier_arrive(&shared.values_full[at.stage]);
        continue;
      }
      load_panels<Shape>(shared.k[at.stage], keys, w.call, place, tile.kv_tile, &shared.keys_full[at.stage]);
      barrier_wait(&shared.values_empty[at.stage], at.parity ^ 1);
      load_panels<Shape>(shared.v[at.stage], values, w.call, place, tile.kv_tile, &shared.values_full[at.stage]);
    }
  }
}

}  // namespace maskattn::cuda
