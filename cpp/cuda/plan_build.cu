#include "cuda/plan_build.hpp"

#include <algorithm>
#include <cstring>

#include "cuda/runtime.hpp"

namespace maskattn::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMostWarps = 8;            // of a block, which lowers a row
constexpr int kBlock = 32 * kMostWarps;  // words, or key tiles, that a block looks at at a time

MASKATTN_HD int blocks_for(int items, int per_block) { return items / per_block + (items % per_block != 0); }
std::size_t round_up(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

__device__ RowPlace place_of(const PlanExtents& plan, const Positions& positions, std::int64_t row) {
  const int i = static_cast<int>(row % plan.q_len), strip = static_cast<int>(row / plan.q_len), b = strip / plan.heads;
  const std::int64_t keys = i < positions.q_lengths[b] ? positions.kv_lengths[b] : 0;
  return {b, strip % plan.heads, positions.row_base + i, positions.q_offset[b] + i, keys};
}

// The edges between hidden and visible keys in words [begin, end) of a row, in order: all of them are counted, `most` are
// written. A warp's lanes take a word each.
__device__ int find_edges(const ProgramView& program, const RowPlace& place, int begin, int end, int most, int* edges) {
  const int lane = threadIdx.x % 32;
  Word carried = begin > 0 ? mask_word(program, place, std::int64_t{begin - 1} * 64) >> 63 : 0;  // is the key before seen?
  int count = 0;
  for (int base = begin; base < end; base += 32) {
    const Word word = base + lane < end ? mask_word(program, place, std::int64_t{base + lane} * 64) : 0;
    const Word before = __shfl_up_sync(kAllLanes, word, 1) >> 63;
    const Word changes = base + lane < end ? word ^ (word << 1 | (lane == 0 ? carried : before)) : 0;
    carried = __shfl_sync(kAllLanes, word, 31) >> 63;
    for (unsigned who = __ballot_sync(kAllLanes, changes != 0); who; who &= who - 1) {
      const int from = __ffs(static_cast<int>(who)) - 1;
      for (Word left = __shfl_sync(kAllLanes, changes, from); left; left &= left - 1) {
        if (lane == 0 && count < most) edges[count] = (base + from) * 64 + __ffsll(static_cast<long long>(left)) - 1;
        ++count;
      }
    }
  }
  return count;
}

// A block takes a row, its warps parts of it; edges are where spans begin and end in turn.
__global__ void __launch_bounds__(kBlock)
    lower_to_spans(ProgramView program, Positions positions, PlanExtents plan, Span* spans) {
  constexpr int room = 2 * kMostSpans;
  MASKATTN_SHARED int edges[kMostWarps * room];
  MASKATTN_SHARED int counts[kMostWarps];
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, kv_tiles = plan.kv_tiles(), most = 2 * plan.spans_per_row;
  const int part = (kv_tiles + warps - 1) / warps, begin = min(warp * part, kv_tiles), end = min(begin + part, kv_tiles);
  const std::int64_t row = blockIdx.x;
  const int count = find_edges(program, place_of(plan, positions, row), begin, end, most, edges + warp * room);
  if (threadIdx.x % 32 == 0) counts[warp] = count;
  __syncthreads();
  if (threadIdx.x >= room || static_cast<int>(threadIdx.x) >= most) return;
  int at = threadIdx.x, w = 0;
  while (w < warps && at >= counts[w]) at -= counts[w++];
  // Edges come in pairs but for a span that ends with the last key.
  const bool open = w == warps && at == 0 && threadIdx.x % 2 == 1;
  reinterpret_cast<int*>(spans + row * plan.spans_per_row)[threadIdx.x] = w < warps ? edges[w * room + at]
                                                                          : open    ? plan.kv_len
                                                                                    : 0;
}

// A block takes 256 words of a row.
__global__ void __launch_bounds__(kBlock) lower_to_bits(ProgramView program, Positions positions, PlanExtents plan, Word* bits) {
  const int kv_tiles = plan.kv_tiles(), of_row = blocks_for(kv_tiles, kBlock);
  const std::int64_t row = static_cast<int>(blockIdx.x) / of_row;
  const int tile = static_cast<int>(blockIdx.x) % of_row * kBlock + static_cast<int>(threadIdx.x);
  if (tile < kv_tiles) bits[row * kv_tiles + tile] = mask_word(program, place_of(plan, positions, row), std::int64_t{tile} * 64);
}

// A block lists the tiles of up to 64 query rows, 256 at a time, a tile a thread.
__global__ void __launch_bounds__(kBlock) list_tiles_of(PlanView plan, TileEntry* tiles, int* tile_counts) {
  MASKATTN_SHARED int warp_counts[kMostWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int q_tile = blockIdx.x % plan.q_tiles, strip = blockIdx.x / plan.q_tiles;
  const int b = strip / plan.heads, h = strip % plan.heads;
  const int first = q_tile * kTile, last = min(first + kTile, plan.q_len);
  TileEntry* to = tiles + std::int64_t{blockIdx.x} * plan.kv_tiles;
  int listed = 0;
  for (int base = 0; base < plan.kv_tiles; base += kBlock) {
    const int tile = base + static_cast<int>(threadIdx.x);
    Word any = 0, all = kAllKeys;
    for (int row = first; tile < plan.kv_tiles && row < last; ++row) {
      const Word seen = plan.visible(b, h, row, tile);
      any |= seen;
      all &= seen;
    }
    const unsigned in_warp = __ballot_sync(kAllLanes, any != 0);
    if (lane == 0) warp_counts[warp] = __popc(in_warp);
    __syncthreads();
    int at = listed + __popc(in_warp & ((1u << lane) - 1));
    for (int w = 0; w < kMostWarps; ++w) {
      if (w < warp) at += warp_counts[w];
      listed += warp_counts[w];
    }
    if (any != 0) to[at].word = static_cast<std::uint32_t>(tile) << 1 | (all == kAllKeys);
    __syncthreads();
  }
  if (threadIdx.x == 0) tile_counts[blockIdx.x] = listed;
}

__device__ std::int64_t integer_at(const GivenIntegers& given, int b, std::int64_t otherwise) {
  if (!given.data) return otherwise;
  const std::int64_t at = b * given.step;
  return given.wide ? static_cast<const std::int64_t*>(given.data)[at] : static_cast<const std::int32_t*>(given.data)[at];
}

__device__ std::int64_t between(std::int64_t low, std::int64_t x, std::int64_t high) {
  return x < low ? low : x > high ? high : x;
}

__global__ void take_positions_of(GivenPositions given, int batch, int q_len, int kv_len, TakenPositions taken) {
  const int b = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (b >= batch) return;
  const std::int64_t keys = between(0, integer_at(given.kv_lengths, b, kv_len), kv_len);
  const std::int64_t queries = between(0, integer_at(given.q_lengths, b, q_len), q_len);
  const std::int64_t offset = integer_at(given.q_offset, b, keys - queries);
  constexpr std::int64_t farthest = std::int64_t{1} << 30;
  taken.kv_lengths[b] = keys;
  taken.q_lengths[b] = queries;
  taken.q_offset[b] = offset;
  taken.near[b] = static_cast<int>(between(-farthest, offset, farthest));
}

// Queries by even blocks, keys by odd ones.
__global__ void take_packed_of(PackedRows queries, PackedRows keys, int count) {
  const int b = static_cast<int>(blockIdx.x / 2 * blockDim.x + threadIdx.x);
  if (b >= count) return;
  const PackedRows& rows = blockIdx.x % 2 == 0 ? queries : keys;
  const std::int64_t start = between(0, integer_at(rows.ends, b, 0), rows.tokens);
  const std::int64_t end = between(start, integer_at(rows.ends, b + 1, 0), rows.tokens);
  rows.starts[b] = start;
  rows.lengths[b] = between(0, end - start, rows.most);
}

// As many words as may be a kernel's parameters.
constexpr int kUploadWords = 440;
struct UploadWords {
  std::uint64_t words[kUploadWords];
};
__global__ void write_words(UploadWords from, int bytes, std::uint64_t* to) {
  const int whole = bytes / 8, tail = bytes % 8, thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < whole; i += static_cast<int>(blockDim.x)) to[i] = from.words[i];
  if (thread < tail)
    reinterpret_cast<unsigned char*>(to + whole)[thread] = static_cast<unsigned char>(from.words[whole] >> (8 * thread));
}
constexpr std::size_t kUploadByCopy = 8 * sizeof(UploadWords);  // from here on, a copy takes less time

}  // namespace

std::size_t PlanMemory::bytes(const PlanExtents& e) {
  const auto strips = static_cast<std::size_t>(e.batch) * static_cast<std::size_t>(e.heads);
  const auto lists = strips * static_cast<std::size_t>(e.q_tiles());
  const std::size_t row = e.spans_per_row ? static_cast<std::size_t>(e.spans_per_row) : static_cast<std::size_t>(e.kv_tiles());
  return round_up(lists * static_cast<std::size_t>(e.kv_tiles()) * sizeof(TileEntry)) + round_up(lists * sizeof(int)) +
         static_cast<std::size_t>(e.rows()) * row * sizeof(std::uint64_t);
}

PlanMemory::PlanMemory(const PlanExtents& e, void* memory) : extents(e) {
  const auto lists =
      static_cast<std::size_t>(e.batch) * static_cast<std::size_t>(e.heads) * static_cast<std::size_t>(e.q_tiles());
  char* at = static_cast<char*>(memory);
  tiles = reinterpret_cast<TileEntry*>(at);
  at += round_up(lists * static_cast<std::size_t>(e.kv_tiles()) * sizeof(TileEntry));
  tile_counts = reinterpret_cast<int*>(at);
  at += round_up(lists * sizeof(int));
  spans = e.spans_per_row ? reinterpret_cast<Span*>(at) : nullptr;
  bits = e.spans_per_row ? nullptr : reinterpret_cast<std::uint64_t*>(at);
}

PlanView PlanMemory::view() const {
  const PlanExtents& e = extents;
  return {e.batch, e.heads, e.q_len, e.kv_len, e.q_tiles(), e.kv_tiles(), tiles, tile_counts, spans, bits, e.spans_per_row};
}

void lower_rows(const ProgramView& program, const Positions& positions, const PlanMemory& plan, Stream stream) {
  const PlanExtents& e = plan.extents;
  constexpr int words_per_warp = 64;  // two for each lane; with fewer, rows alone keep the device busy
  const int warps = std::clamp(e.kv_tiles() / words_per_warp, 1, kMostWarps);
  if (e.spans_per_row)
    launch(lower_to_spans, e.rows(), 32 * warps, 0, stream, program, positions, e, plan.spans);
  else
    launch(lower_to_bits, e.rows() * blocks_for(e.kv_tiles(), kBlock), std::clamp((e.kv_tiles() + 31) / 32 * 32, 32, kBlock), 0,
           stream, program, positions, e, plan.bits);
}

void list_tiles(const PlanView& plan, TileEntry* tiles, int* tile_counts, Stream stream) {
  const std::int64_t lists = std::int64_t{plan.batch} * plan.heads * plan.q_tiles;
  launch(list_tiles_of, lists, kBlock, 0, stream, plan, tiles, tile_counts);
}

TakenPositions::TakenPositions(void* memory, int batch)
    : q_offset(static_cast<std::int64_t*>(memory)),
      kv_lengths(q_offset + batch),
      q_lengths(kv_lengths + batch),
      near(reinterpret_cast<int*>(q_lengths + batch)) {}

void take_positions(const GivenPositions& given, int batch, int q_len, int kv_len, const TakenPositions& taken, Stream stream) {
  constexpr int threads = 128;
  launch(take_positions_of, blocks_for(batch, threads), threads, 0, stream, given, batch, q_len, kv_len, taken);
}

void take_packed(const PackedRows& queries, const PackedRows& keys, int count, Stream stream) {
  constexpr int threads = 128;
  launch(take_packed_of, 2 * std::int64_t{blocks_for(count, threads)}, threads, 0, stream, queries, keys, count);
}

void upload(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes > kUploadByCopy && !capturing(stream)) return send(to, from, bytes, stream);
  for (std::size_t done = 0; done < bytes; done += sizeof(UploadWords)) {
    UploadWords words;
    const std::size_t part = std::min(bytes - done, sizeof words);
    std::memcpy(words.words, static_cast<const char*>(from) + done, part);
    launch(write_words, 1, 128, 0, stream, words, static_cast<int>(part),
           reinterpret_cast<std::uint64_t*>(static_cast<char*>(to) + done));
  }
}

}  // namespace maskattn::cuda
