// A query row by one warp, without matrix units and without a look at keys that the row does not see.
#pragma once

#include "cuda/scores.hpp"

namespace maskattn::cuda {

inline constexpr int kMostColumns = 256, kColumnsPerLane = kMostColumns / 32;

struct PlainRow {
  int b, head, kv_head, query;
};

// What a warp keeps in shared memory: its query, and the weights of a tile.
struct PlainRowMemory {
  float query[kMostColumns];
  float weights[kTile];
};

template <class T>
__device__ void load_query(const AttentionCall& call, const ScoreTerms& terms, const PlainRow& row, float* query) {
  const T* q = at<T>(call.q, row_offset(call.q, row.b, row.head, row.query));
  for (int d = static_cast<int>(threadIdx.x) % 32; d < call.head_dim; d += 32) query[d] = terms.sign * to_float(q[d]);
  __syncwarp();
}

// q.k in chains of 32, added in order: more accurate than one chain.
template <class Stored>
__device__ float dot_product(const float* query, const StoredRow<Stored>& key, int head_dim) {
  float sum = 0;
  for (int first = 0; first < head_dim; first += 32) {
    const int end = first + 32 < head_dim ? first + 32 : head_dim;
    float chain = 0;
    for (int d = first; d < end; ++d) chain = fmaf(query[d], to_float(key.data[d]), chain);
    sum += chain;
  }
  if constexpr (std::is_same_v<Stored, std::int8_t>) sum *= key.scale;
  return sum;
}

// Two keys of a tile that a lane has: which of them its row sees, and their scores, -inf where it does not.
struct PlainScores {
  float s[2];
  bool seen[2];
};

// `visible`: the keys of the tile that the row sees, of which those that a bias hides are taken out.
template <class Stored>
__device__ PlainScores scores_of_tile(const AttentionCall& call, const ScoreTerms& terms, PlainRow row, const float* query,
                                      int kv_tile, std::uint64_t& visible) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  PlainScores mine;
  std::uint64_t shown = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = kv_tile * kTile + 32 * half + lane;
    mine.seen[half] = (visible >> (32 * half + lane) & 1) && !hidden_by_bias(call, row.b, row.head, row.query, key);
    mine.s[half] = kMinusInfinity;
    if (mine.seen[half]) {
      const auto k = stored_row<Stored>(call, call.k, call.k_scales, row.b, row.kv_head, key);
      mine.s[half] = finished_score(call, terms, dot_product(query, k, call.head_dim), row.b, row.head, row.query, key);
    }
    shown |= static_cast<std::uint64_t>(__ballot_sync(0xffffffffu, mine.seen[half])) << (32 * half);
  }
  visible = shown;
  return mine;
}

template <class Stored>
__device__ void add_values(const AttentionCall& call, PlainRow row, const float* weights, int kv_tile, std::uint64_t visible,
                           float (&sums)[kColumnsPerLane]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (; visible; visible &= visible - 1) {
    const int i = __ffsll(static_cast<long long>(visible)) - 1;
    const auto v = stored_row<Stored>(call, call.v, call.v_scales, row.b, row.kv_head, kv_tile * kTile + i);
    const float weight = std::is_same_v<Stored, std::int8_t> ? weights[i] * v.scale : weights[i];
#pragma unroll
    for (int c = 0; c < kColumnsPerLane; ++c)
      if (lane + 32 * c < call.v_head_dim) sums[c] = fmaf(weight, to_float(v.data[lane + 32 * c]), sums[c]);
  }
}

template <class T, class Stored>
__device__ void attend_row(const AttentionCall& call, const ScoreTerms& terms, const PlainRow& row, PlainRowMemory& memory) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_query<T>(call, terms, row, memory.query);
  RowState state;
  float sums[kColumnsPerLane] = {};
  const int q_tile = row.query / kTile, count = call.plan.tile_count(row.b, row.head, q_tile);
  const TileEntry* tiles = call.plan.tiles_of(row.b, row.head, q_tile);
  for (int n = 0; n < count; ++n) {
    const int kv_tile = tiles[n].kv_tile();
    std::uint64_t visible = existing(call, row.b, kv_tile, call.plan.visible(row.b, row.head, row.query, kv_tile));
    if (visible == 0) continue;
    const PlainScores scores = scores_of_tile<Stored>(call, terms, row, memory.query, kv_tile, visible);
    if (visible == 0) continue;
    const float factor = state.raise(warp_maximum(fmaxf(scores.s[0], scores.s[1])), terms.log2.high);
    state.sum *= factor;  // of this lane's keys
#pragma unroll
    for (float& sum : sums) sum *= factor;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float weight =
          scores.seen[half] ? softmax_weight(scores.s[half], terms.log2.high, terms.log2.low, state.base()) : 0.f;
      memory.weights[32 * half + lane] = weight;
      state.sum += weight;
    }
    __syncwarp();
    add_values<Stored>(call, row, memory.weights, kv_tile, visible, sums);
    __syncwarp();
  }
  state.sum = warp_sum(state.sum);
  const RowResult result = finish(state, call.sinks ? call.sinks + row.head : nullptr);
  T* out = at<T>(call.out, row_offset(call.out, row.b, row.head, row.query));
#pragma unroll
  for (int c = 0; c < kColumnsPerLane; ++c)
    if (lane + 32 * c < call.v_head_dim) out[lane + 32 * c] = from_float<T>(sums[c] * result.factor);
  if (call.lse && lane == 0) store_lse(call, row.b, row.head, row.query, result.lse);
}

}  // namespace maskattn::cuda
