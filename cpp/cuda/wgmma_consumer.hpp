// A consumer of attention_wgmma.cu.
#pragma once

#include "cuda/fragment_output.hpp"
#include "cuda/wgmma_block.hpp"
#include "cuda/wgmma_math.hpp"

namespace maskattn::cuda {

// One warpgroup and its strip.
template <class Shape, Dtype kType, int kDim, bool kModified>
struct WgmmaConsumer {
  __device__ WgmmaConsumer(const WgmmaCall& w_, WgmmaShared<Shape>& shared_, int s_) : w(w_), shared(shared_), s(s_) {}

  const WgmmaCall& w;
  WgmmaShared<Shape>& shared;
  int s;  // which consumer
  Ring<Shape::kStages> at{};
  WgmmaPlace place{};
  WgmmaMath<kType, kDim> math;

  __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }
  __device__ int row() const {
    return static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane() / 4;
  }  // the upper of this lane's two
  __device__ Strip strip() const { return strip_of(w.call, place.kv_head, place.first_strip + s); }
  __device__ char* queries() const { return shared.q + (Shape::kQueryBytes ? s * Shape::kTileBytes : 0); }
  __device__ void meet() const { named_barrier_sync(1 + s, 128); }

  __device__ SharedTile wait_for_keys() {
    barrier_wait(&shared.keys_full[at.stage], at.parity);
    return shared.tiles[at.stage].tile;
  }
  __device__ void release(std::uint64_t* barriers, int stage) {
    __syncwarp();
    if (lane() == 0) barrier_arrive(&barriers[stage]);
  }
  __device__ void skip() {
    barrier_wait(&shared.values_full[at.stage], at.parity);
    release(shared.keys_empty, at.stage);
    release(shared.values_empty, at.stage);
    at.advance();
  }

  // Fragments, or panels, of 64 rows; past the end, and past head_dim, which is even, zeros.
  __device__ void load_queries() {
    const Strip mine = strip();
    const int queries_here = queries_of(w.call, place.b);
    const auto read = [&](int row, int column) {
      const int query = mine.q_tile * kTile + row;
      if (query >= queries_here || column >= w.call.head_dim) return 0u;
      return *reinterpret_cast<const std::uint32_t*>(at_query(mine.head, query) + column);
    };
    if constexpr (WgmmaMath<kType, kDim>::kQueriesInRegisters) {
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) math.q[step][i] = read(row() + i % 2 * 8, 16 * step + i / 2 * 8 + 2 * (lane() % 4));
    } else {
      meet();  // all are done with the queries before
#pragma unroll 4
      for (int i = static_cast<int>(threadIdx.x) % 128; i < kTile * kDim / 2; i += 128) {
        const int r = i / (kDim / 2), pair = i % (kDim / 2), in_panel = r * kPanelRowBytes + pair % 32 / 4 * 16;
        char* const panel = queries() + pair / 32 * kTile * kPanelRowBytes;
        *reinterpret_cast<std::uint32_t*>(panel + (in_panel ^ (r & 7) << 4) + pair % 4 * 4) = read(r, 2 * pair);
      }
      fence_for_async();
      meet();
    }
  }
  __device__ const std::uint16_t* at_query(int head, int query) const {
    return at_row(w.call.q, row_offset(w.call.q, place.b, head, query));
  }
  __device__ static const std::uint16_t* at_row(const Rows<const void>& rows, std::int64_t offset) {
    return static_cast<const std::uint16_t*>(rows.data) + offset;
  }

  // Scores of a tile as the softmax takes them, and their weights.
  __device__ void softmax(SharedTile tile, float (&scores)[8][4], float (&rescale)[2]) {
    if (kModified || !(tile.full >> s & 1)) {
      const Strip mine = strip();
      const std::uint64_t upper = tile.existing() & visible_keys(w.call, tile, place.b, mine, s, row());
      const std::uint64_t lower = tile.existing() & visible_keys(w.call, tile, place.b, mine, s, row() + 8);
      if constexpr (kModified)
        finish_scores(w.call, w.terms, scores,
                      {place.b, mine.head, mine.q_tile * kTile + row(), tile.kv_tile * kTile + 2 * (lane() % 4)}, upper, lower);
      else
        hide(scores, upper, lower);
    }
    online_softmax<false>(scores, w.terms.log2, math.rows, rescale);
  }

  // Values of keys that no row sees may be anything: a weight of zero does not make them nothing.
  __device__ void wait_for_values(int stage, unsigned parity, std::uint64_t hidden) {
    barrier_wait(&shared.values_full[stage], parity);
    if (hidden == 0) return;
    constexpr int kChunks = kPanelRowBytes / 16;
    for (; hidden; hidden &= hidden - 1) {
      const int key = __ffsll(static_cast<long long>(hidden)) - 1, chunk = static_cast<int>(threadIdx.x) % 128;
      if (chunk >= Shape::kPanels * kChunks) continue;
      char* const row = shared.v[stage] + chunk / kChunks * kTile * kPanelRowBytes + key * kPanelRowBytes;
      *reinterpret_cast<uint4*>(row + chunk % kChunks * 16) = {0, 0, 0, 0};
    }
    fence_for_async();
    meet();
  }

  // From a tile that the strip sees on, to the first that it does not see, or the end; where scores take registers of their own,
  // to the next.
  __device__ SharedTile run(SharedTile tile) {
    using Math = WgmmaMath<kType, kDim>;
    std::uint64_t hidden = shared.tiles[at.stage].hidden;
    {
      float scores[8][4], rescale[2];
      math.multiply_keys(scores, queries(), shared.k[at.stage]);
      Math::template wait_for_scores<0>(scores);
      release(shared.keys_empty, at.stage);
      softmax(tile, scores, rescale);
      math.take_weights(scores, rescale);
    }
    for (;;) {
      const int stage = at.stage;
      const unsigned parity = at.parity;
      at.advance();
      tile = wait_for_keys();
      if (kModified || tile.none() || !(tile.seen >> s & 1)) {
        wait_for_values(stage, parity, hidden);
        math.multiply_values(shared.v[stage]);
        math.wait_for_outputs();
        release(shared.values_empty, stage);
        return tile;
      }
      float scores[8][4], rescale[2];
      math.multiply_keys(scores, queries(), shared.k[at.stage]);
      wait_for_values(stage, parity, hidden);
      math.multiply_values(shared.v[stage]);
      hidden = shared.tiles[at.stage].hidden;
      Math::template wait_for_scores<1>(scores);
      release(shared.keys_empty, at.stage);
      softmax(tile, scores, rescale);
      math.wait_for_outputs();
      release(shared.values_empty, stage);
      math.take_weights(scores, rescale);
    }
  }

  // Whether all of this warp's outputs are finite.
  __device__ bool store() {
    const Strip mine = strip();
    if (mine.q_tile >= w.call.plan.q_tiles) return true;
    auto& o = reinterpret_cast<float (&)[kDim / 8][4]>(math.o);
    const unsigned odd = store_rows<kType>(w.call, place.b, mine.head, mine.q_tile * kTile + row(), w.pairs, o, math.rows);
    return __all_sync(0xffffffffu, odd == 0);
  }

  __device__ void consume() {
    bool finite = true;
#pragma unroll 1
    for (int work = static_cast<int>(blockIdx.x); work < w.works; work += static_cast<int>(gridDim.x)) {
      place = place_of_work<Shape>(w, work);
      load_queries();
      math.clear();
      SharedTile tile = wait_for_keys();
      while (!tile.none()) {
        if (tile.seen >> s & 1) {
          tile = run(tile);
        } else {
          skip();
          tile = wait_for_keys();
        }
      }
      skip();  // what says that this was all
      finite = store() && finite;
    }
    if (!finite) repair();
  }

  // The outputs of this warp once more. Here and not where they are made, where it would take the products' registers.
  __device__ void repair() {
#pragma unroll 1
    for (int work = static_cast<int>(blockIdx.x); work < w.works; work += static_cast<int>(gridDim.x)) {
      place = place_of_work<Shape>(w, work);
      const Strip mine = strip();
      const int first = mine.q_tile * kTile + static_cast<int>(threadIdx.x) % 128 / 32 * 16;
#pragma unroll 1
      for (int query = first; query < min(first + 16, queries_of(w.call, place.b)); ++query)
        repair_row<kType>(w.call, w.terms, {place.b, mine.head, place.kv_head, query},
                          shared.rows[s * 4 + threadIdx.x % 128 / 32]);
    }
  }
};

}  // namespace maskattn::cuda
