// Attention of many rows on sm_90a (arXiv:2407.08608). A block stays on its multiprocessor and takes piece after piece of work. One warp,
// the producer, has the copy engine bring tiles of keys and values into a ring of stages; two or three warpgroups, the consumers, do a
// strip each. A consumer's products of the next scores run while it makes weights of the last, and while others multiply.
#include "cuda/fragment_output.hpp"
#include "cuda/ptx_bulk.hpp"
#include "cuda/runtime.hpp"
#include "cuda/strips.hpp"
#include "cuda/wgmma_consumer.hpp"

#include <algorithm>

namespace maskattn::cuda {
namespace {

// Three consumers where the registers of a multiprocessor hold the outputs of three strips; stages as many as shared memory holds, or
// are of use.
template <int kDim>
struct WgmmaShape {
  static constexpr int kConsumers = kDim == 64 ? 3 : 2, kThreads = 128 * (1 + kConsumers), kRows = kTile * kConsumers;
  static constexpr int kConsumerRegisters = kConsumers == 3 ? 160 : 232, kProducerRegisters = kConsumers == 3 ? 32 : 40;
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
__device__ std::uint64_t hidden_keys(const AttentionCall& call, WgmmaPlace place, SharedTile tile) {
  if (tile.full == TileWalk<Shape::kConsumers>::kAll) return 0;
  std::uint64_t seen = 0;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) % 32; row < Shape::kRows; row += 32) {
    const int s = row / kTile;
    seen |= visible_keys(call, tile, place.b, strip_of(call, place.kv_head, place.first_strip + s), s, row % kTile);
  }
  const std::uint32_t low = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(seen));
  const std::uint32_t high = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(seen >> 32));
  return ~(static_cast<std::uint64_t>(high) << 32 | low);
}

template <class Shape>
__device__ void load_panels(char* to, const TensorMap& map, WgmmaPlace place, int kv_tile, std::uint64_t* barrier) {
  barrier_arrive_expect(barrier, Shape::kTileBytes);
#pragma unroll 1
  for (int n = 0; n < Shape::kPanels; ++n)
    copy_box(to + n * kTile * kPanelRowBytes, map, n * kPanelColumns, kv_tile * kTile, place.kv_head, place.b, barrier);
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
      const std::uint64_t hidden = more ? hidden_keys<Shape>(w.call, place, tile) : 0;
      if (!leader) continue;
      stage.hidden = hidden;
      if (!more) {
        barrier_arrive(&shared.keys_full[at.stage]);
        barrier_wait(&shared.values_empty[at.stage], at.parity ^ 1);
        barrier_arrive(&shared.values_full[at.stage]);
        continue;
      }
      load_panels<Shape>(shared.k[at.stage], keys, place, tile.kv_tile, &shared.keys_full[at.stage]);
      barrier_wait(&shared.values_empty[at.stage], at.parity ^ 1);
      load_panels<Shape>(shared.v[at.stage], values, place, tile.kv_tile, &shared.values_full[at.stage]);
    }
  }
}

// One warpgroup and its strip.
template <class Shape, Dtype kType, int kDim, bool kModified>
struct Consumer {
  const WgmmaCall& w;
  WgmmaShared<Shape>& shared;
  int s;  // which consumer
  Ring<Shape::kStages> at{};
  WgmmaPlace place{};
  WgmmaConsumer<kType, kDim> math{};

  __device__ int lane() const { return static_cast<int>(threadIdx.x) % 32; }
  __device__ int row() const { return static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane() / 4; }  // the upper of this lane's two
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
    const auto read = [&](int row, int column) {
      const int query = mine.q_tile * kTile + row;
      if (query >= w.call.q_len || column >= w.call.head_dim) return 0u;
      return *reinterpret_cast<const std::uint32_t*>(at_query(mine.head, query) + column);
    };
    if constexpr (WgmmaConsumer<kType, kDim>::kQueriesInRegisters) {
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
  __device__ void softmax(SharedTile tile, float (&rescale)[2]) {
    if (kModified || !(tile.full >> s & 1)) {
      const Strip mine = strip();
      const std::uint64_t upper = visible_keys(w.call, tile, place.b, mine, s, row());
      const std::uint64_t lower = visible_keys(w.call, tile, place.b, mine, s, row() + 8);
      if constexpr (kModified)
        finish_scores(w.call, w.terms, math.s,
                      {place.b, mine.head, mine.q_tile * kTile + row(), tile.kv_tile * kTile + 2 * (lane() % 4)}, upper, lower);
      else
        hide(math.s, upper, lower);
    }
    online_softmax<false>(math.s, w.terms.log2, math.rows, rescale);
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

  // From a tile that the strip sees on, to the first that it does not see, or the end.
  __device__ SharedTile run(SharedTile tile) {
    float rescale[2];
    math.multiply_keys(queries(), shared.k[at.stage]);
    std::uint64_t hidden = shared.tiles[at.stage].hidden;
    math.template wait_for_scores<0>();
    release(shared.keys_empty, at.stage);
    softmax(tile, rescale);
    math.take_weights(rescale);
    for (;;) {
      const int stage = at.stage;
      const unsigned parity = at.parity;
      at.advance();
      tile = wait_for_keys();
      if (tile.none() || !(tile.seen >> s & 1)) {
        wait_for_values(stage, parity, hidden);
        math.multiply_values(shared.v[stage]);
        math.wait_for_outputs();
        release(shared.values_empty, stage);
        return tile;
      }
      math.multiply_keys(queries(), shared.k[at.stage]);
      wait_for_values(stage, parity, hidden);
      math.multiply_values(shared.v[stage]);
      hidden = shared.tiles[at.stage].hidden;
      math.template wait_for_scores<1>();
      release(shared.keys_empty, at.stage);
      softmax(tile, rescale);
      math.wait_for_outputs();
      release(shared.values_empty, stage);
      math.take_weights(rescale);
    }
  }

  __device__ void store() {
    const Strip mine = strip();
    const int query = mine.q_tile * kTile + row();
    if (mine.q_tile >= w.call.plan.q_tiles) return;
    auto& o = reinterpret_cast<float(&)[kDim / 8][4]>(math.o);
    const unsigned odd = store_rows<kType>(w.call, place.b, mine.head, query, w.pairs, o, math.rows);
    repair_rows<kType>(w.call, w.terms, place.b, mine.head, query, odd, shared.rows[s * 4 + threadIdx.x % 128 / 32]);
  }

  __device__ void consume() {
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
      store();
    }
  }
};

template <Dtype kType, int kDim, bool kModified>
__global__ void __launch_bounds__(WgmmaShape<kDim>::kThreads, 1)
    wgmma_kernel(const __grid_constant__ WgmmaCall w, const __grid_constant__ TensorMap keys, const __grid_constant__ TensorMap values) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = WgmmaShape<kDim>;
  auto& shared = *dynamic_shared<WgmmaShared<Shape>>();
  if (threadIdx.x == 0) {
    prefetch_map(keys);
    prefetch_map(values);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      barrier_init(&shared.keys_full[stage], 1);
      barrier_init(&shared.values_full[stage], 1);
      barrier_init(&shared.keys_empty[stage], 4 * Shape::kConsumers);  // a lane of each warp
      barrier_init(&shared.values_empty[stage], 4 * Shape::kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_up_registers<Shape::kProducerRegisters>();
    if (threadIdx.x < 32) produce(w, keys, values, shared);
  } else {
    take_registers<Shape::kConsumerRegisters>();
    Consumer<Shape, kType, kDim, kModified>{w, shared, static_cast<int>(threadIdx.x) / 128 - 1}.consume();
  }
#endif
}

TensorMap map_of(const AttentionCall& call, const Rows<const void>& rows, int columns) {
  const auto extent = [](int n) { return static_cast<std::uint64_t>(n); };
  TensorShape shape{rows.data, {extent(columns), extent(call.kv_len), extent(call.kv_heads), extent(call.batch)}, {}};
  const std::ptrdiff_t strides[] = {rows.stride[2], rows.stride[1], rows.stride[0]};
  // Along an extent of 1 nothing is ever multiplied with the stride, but it must be one.
  for (int i = 0; i < 3; ++i) shape.stride[i] = shape.extent[i + 1] == 1 ? 16 : static_cast<std::uint64_t>(strides[i]) * 2;
  return tensor_map(shape);
}

template <Dtype kType, int kDim, bool kModified>
void launch_wgmma(const AttentionCall& call, Stream stream) {
  using Shape = WgmmaShape<kDim>;
  constexpr std::int64_t kCacheBytes = 24 << 20;
  const int heads = call.batch * call.kv_heads, strips = strips_per_kv_head(call);
  const int blocks = (strips + Shape::kConsumers - 1) / Shape::kConsumers;
  const std::int64_t head_bytes = 2 * static_cast<std::int64_t>(call.kv_len) * (call.head_dim + call.v_head_dim);
  const auto at_once = static_cast<int>(std::clamp<std::int64_t>(kCacheBytes / std::max<std::int64_t>(head_bytes, 1), 1, std::max(heads, 1)));
  const WgmmaCall w{call,   score_terms(call), strips, blocks, blocks * heads, at_once,
                    rows_have_pairs<2>(call.out, call.v_head_dim)};
  const int grid = std::min(w.works, device().multiprocessors);
  launch(wgmma_kernel<kType, kDim, kModified>, dim3(static_cast<unsigned>(grid)), dim3(Shape::kThreads), sizeof(WgmmaShared<Shape>),
         stream, w, map_of(call, call.k, call.head_dim), map_of(call, call.v, call.v_head_dim));
}

template <Dtype kType>
void launch_wgmma(const AttentionCall& call, Stream stream) {
  const int dim = std::max(call.head_dim, call.v_head_dim);
  const bool modified = has_terms(call);
  const auto run = dim <= 64    ? (modified ? launch_wgmma<kType, 64, true> : launch_wgmma<kType, 64, false>)
                   : dim <= 128 ? (modified ? launch_wgmma<kType, 128, true> : launch_wgmma<kType, 128, false>)
                                : (modified ? launch_wgmma<kType, 256, true> : launch_wgmma<kType, 256, false>);
  run(call, stream);
}

// Extents of 1 may have any stride.
bool engine_can_copy(const AttentionCall& call, const Rows<const void>& rows) {
  const int extent[] = {call.batch, call.kv_heads, call.kv_len};
  bool can = reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && !rows.starts;
  for (int i = 0; i < 3; ++i)
    can = can && (extent[i] == 1 || (rows.stride[i] > 0 && rows.stride[i] % 8 == 0 && rows.stride[i] < (std::int64_t{1} << 39)));
  return can;
}

}  // namespace

bool wgmma_can(const AttentionCall& call, int compute_capability) {
  const bool pairs = reinterpret_cast<std::uintptr_t>(call.q.data) % 4 == 0 && call.head_dim % 2 == 0 && call.q.stride[0] % 2 == 0 &&
                     call.q.stride[1] % 2 == 0 && call.q.stride[2] % 2 == 0;
  return compute_capability == 90 && (call.dtype == Dtype::bfloat16 || call.dtype == Dtype::float16) && call.kv_len > 0 && pairs &&
         engine_can_copy(call, call.k) && engine_can_copy(call, call.v) && !call.page_table && can_scale(call) &&
         std::max(call.head_dim, call.v_head_dim) <= 256;
}

void attention_wgmma(const AttentionCall& call, Stream stream) {
  if (call.dtype == Dtype::bfloat16) return launch_wgmma<Dtype::bfloat16>(call, stream);
  launch_wgmma<Dtype::float16>(call, stream);
}

}  // namespace maskattn::cuda
