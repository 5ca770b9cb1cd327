// Strips, and what blocks that do several of them walk. A strip is the 64 query rows of a head that a list of tiles in the plan
// speaks of; a block's strips belong to one key head, so that a tile of keys is loaded once for all that see some of it.
#pragma once

#include "cuda/numbers.hpp"

namespace maskattn::cuda {

struct Strip {
  int head, q_tile;  // q_tile is at or past the plan's q_tiles where there is nothing left to do
};

// Strips of a key head are numbered query tile by query tile with the heads of the group innermost.
__device__ inline Strip strip_of(const AttentionCall& call, int kv_head, int number) {
  const int group = call.q_heads / call.kv_heads;
  return {kv_head * group + number % group, number / group};
}
inline int strips_per_kv_head(const AttentionCall& call) { return call.plan.q_tiles * (call.q_heads / call.kv_heads); }

// A tile of keys that some strip of a block sees a key of.
struct SharedTile {
  int kv_tile;              // -1: there is none
  std::uint8_t seen, full;  // bit s: strip s sees a key of the tile; all its rows see 64 keys
  std::uint8_t keys;        // of the tile, that the sequence has

  __device__ bool none() const { return kv_tile < 0; }
  // The keys that there are, whatever the plan was made for.
  __device__ std::uint64_t existing() const { return ~std::uint64_t{0} >> (kTile - keys); }
};

// The tiles of a block, ascending: the lists of its strips merged.
template <int kStrips>
class TileWalk {
 public:
  static constexpr unsigned kAll = (1u << kStrips) - 1;

  __device__ void begin(const AttentionCall& call, int b, int kv_head, int first_strip) {
    kv_len_ = keys_of(call, b);
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      const Strip strip = strip_of(call, kv_head, first_strip + s);
      const bool real = strip.q_tile < call.plan.q_tiles;
      at_[s] = real ? call.plan.tiles_of(b, strip.head, strip.q_tile) : nullptr;
      end_[s] = real ? at_[s] + call.plan.tile_count(b, strip.head, strip.q_tile) : nullptr;
      read(s);
    }
  }

  __device__ SharedTile next() {
    std::uint32_t nearest = kNone;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) nearest = min(nearest, word_[s] >> 1);
    if (nearest == kNone) return {-1, 0, 0, 0};
    const int first = static_cast<int>(nearest) * kTile;
    const int keys = min(kTile, kv_len_ - first);
    unsigned seen = 0, full = 0;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      if (word_[s] >> 1 != nearest) continue;
      seen |= 1u << s;
      full |= (keys == kTile ? word_[s] & 1 : 0) << s;
      ++at_[s];
      read(s);
    }
    return {static_cast<int>(nearest), static_cast<std::uint8_t>(seen), static_cast<std::uint8_t>(full),
            static_cast<std::uint8_t>(keys)};
  }

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0} >> 1;
  // The next of a strip's list, which ends where the keys do.
  __device__ void read(int s) {
    const bool there = at_[s] < end_[s] && at_[s]->kv_tile() * kTile < kv_len_;
    word_[s] = there ? at_[s]->word : ~std::uint32_t{0};
  }

  const TileEntry *at_[kStrips], *end_[kStrips];
  std::uint32_t word_[kStrips];
  int kv_len_;
};

// The keys of a tile that a row of strip number s sees, in bit j key 64 kv_tile + j; more than tile.existing() where the plan was
// made for longer sequences.
__device__ inline std::uint64_t visible_keys(const AttentionCall& call, const SharedTile& tile, int b, Strip strip, int s,
                                             int row) {
  const int query = strip.q_tile * kTile + row;
  if (!(tile.seen >> s & 1) || query >= call.q_len) return 0;
  if (tile.full >> s & 1) return ~std::uint64_t{0};
  const PlanView& plan = call.plan;
  if (plan.spans_per_row == 0) return plan.visible(b, strip.head, query, tile.kv_tile);
  const Span* const spans = plan.spans + (plan.strip(b, strip.head) * plan.q_len + query) * plan.spans_per_row;
  std::uint64_t word = 0;
#pragma unroll 1  // several at once would take registers that the kernels have no more
  for (int i = 0; i < plan.spans_per_row; ++i) word |= PlanView::keys_between(spans[i], tile.kv_tile);
  return word;
}

}  // namespace maskattn::cuda
