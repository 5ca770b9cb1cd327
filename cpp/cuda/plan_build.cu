#include "cuda/plan_build.hpp"

#include <algorithm>

#include "cuda/runtime.hpp"

namespace maskattn::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRowWarps = 4;     // rows that a block lowers at a time
constexpr int kListThreads = 256;  // key tiles that a block looks at at a time

std::size_t round_up(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

__device__ RowPlace place_of(const PlanExtents& plan, const Positions& positions, std::int64_t row) {
  const int i = static_cast<int>(row % plan.q_len), strip = static_cast<int>(row / plan.q_len), b = strip / plan.heads;
  return {b, strip % plan.heads, positions.row_base + i, positions.q_offset[b] + i, positions.kv_lengths[b]};
}

// A warp takes a row, a lane a word; the edges between hidden and visible keys, in order, are the row's spans.
__global__ void __launch_bounds__(32 * kRowWarps)
    lower_to_spans(ProgramView program, Positions positions, PlanExtents plan, Span* spans) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowWarps + threadIdx.x / 32;
  if (row >= plan.rows()) return;
  const int lane = threadIdx.x % 32, kv_tiles = plan.kv_tiles(), most = 2 * plan.spans_per_row;
  const RowPlace place = place_of(plan, positions, row);
  auto* edges = reinterpret_cast<std::int32_t*>(spans + row * plan.spans_per_row);
  int count = 0;
  Word carried = 0;  // whether the key before these words is seen
  for (int base = 0; base < kv_tiles; base += 32) {
    const Word word = base + lane < kv_tiles ? mask_word(program, place, std::int64_t{base + lane} * 64) : 0;
    const Word before = __shfl_up_sync(kAllLanes, word, 1) >> 63;
    const Word changes = word ^ (word << 1 | (lane == 0 ? carried : before));
    carried = __shfl_sync(kAllLanes, word, 31) >> 63;
    for (unsigned who = __ballot_sync(kAllLanes, changes != 0); who; who &= who - 1) {
      const int from = __ffs(static_cast<int>(who)) - 1;
      for (Word left = __shfl_sync(kAllLanes, changes, from); left; left &= left - 1) {
        const int at = (base + from) * 64 + __ffsll(static_cast<long long>(left)) - 1;
        if (lane == 0 && count < most) edges[count] = at;
        ++count;
      }
    }
  }
  if (carried && count < most) {
    if (lane == 0) edges[count] = plan.kv_len;
    ++count;
  }
  for (int rest = count + lane; rest < most; rest += 32) edges[rest] = 0;
}

// A warp takes a row, a lane a word.
__global__ void __launch_bounds__(32 * kRowWarps)
    lower_to_bits(ProgramView program, Positions positions, PlanExtents plan, Word* bits) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowWarps + threadIdx.x / 32;
  if (row >= plan.rows()) return;
  const RowPlace place = place_of(plan, positions, row);
  const int kv_tiles = plan.kv_tiles();
  for (int tile = threadIdx.x % 32; tile < kv_tiles; tile += 32)
    bits[row * kv_tiles + tile] = mask_word(program, place, std::int64_t{tile} * 64);
}

// A block takes the tiles of 64 query rows, 256 at a time: lanes stand for rows while a warp looks at its 32 tiles one by one, and
// for tiles when these are listed.
__global__ void __launch_bounds__(kListThreads) list_tiles_of(PlanView plan, TileEntry* tiles, int* tile_counts) {
  MASKATTN_SHARED int warp_counts[kListThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int q_tile = blockIdx.x % plan.q_tiles, strip = blockIdx.x / plan.q_tiles;
  const int b = strip / plan.heads, h = strip % plan.heads;
  const int upper = q_tile * kTile + lane, lower = upper + 32;
  TileEntry* to = tiles + std::int64_t{blockIdx.x} * plan.kv_tiles;
  int listed = 0;
  for (int base = 0; base < plan.kv_tiles; base += kListThreads) {
    const int first = base + 32 * warp;
    unsigned seen = 0, full = 0;  // bit s: tile first + s
    for (int s = 0; s < 32 && first + s < plan.kv_tiles; ++s) {
      const Word above = upper < plan.q_len ? plan.visible(b, h, upper, first + s) : 0;
      const Word below = lower < plan.q_len ? plan.visible(b, h, lower, first + s) : 0;
      const bool all = (above == kAllKeys || upper >= plan.q_len) && (below == kAllKeys || lower >= plan.q_len);
      seen |= static_cast<unsigned>(__any_sync(kAllLanes, (above | below) != 0) != 0) << s;
      full |= static_cast<unsigned>(__all_sync(kAllLanes, all) != 0) << s;
    }
    if (lane == 0) warp_counts[warp] = __popc(seen);
    __syncthreads();
    int at = listed + __popc(seen & ((1u << lane) - 1));
    for (int w = 0; w < kListThreads / 32; ++w) {
      if (w < warp) at += warp_counts[w];
      listed += warp_counts[w];
    }
    if (seen >> lane & 1) to[at].word = static_cast<std::uint32_t>(first + lane) << 1 | (full >> lane & 1);
    __syncthreads();
  }
  if (threadIdx.x == 0) tile_counts[blockIdx.x] = listed;
}

__device__ std::int64_t integer_at(const void* array, bool wide, std::int64_t at) {
  return wide ? static_cast<const std::int64_t*>(array)[at] : static_cast<const std::int32_t*>(array)[at];
}

__global__ void take_positions_of(GivenPositions given, int batch, int q_len, int kv_len, std::int64_t* kv_lengths,
                                  std::int64_t* q_offset, int* near) {
  const int b = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (b >= batch) return;
  std::int64_t length = kv_len;
  if (given.kv_lengths) length = integer_at(given.kv_lengths, given.wide_lengths, b * given.length_step);
  length = length < 0 ? 0 : length > kv_len ? kv_len : length;
  const std::int64_t offset =
      given.q_offset ? integer_at(given.q_offset, given.wide_offset, b * given.offset_step) : length - q_len;
  constexpr std::int64_t farthest = std::int64_t{1} << 30;
  kv_lengths[b] = length;
  q_offset[b] = offset;
  near[b] = static_cast<int>(offset < -farthest ? -farthest : offset > farthest ? farthest : offset);
}

// As many words as may be a kernel's parameters.
constexpr int kUploadWords = 440;
struct UploadWords {
  std::uint64_t words[kUploadWords];
};
__global__ void write_words(UploadWords from, int count, std::uint64_t* to) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = from.words[i];
}
constexpr std::size_t kUploadByCopy = 8 * sizeof(UploadWords);  // from here on, a copy takes less time

unsigned blocks_for(std::int64_t items, int per_block) { return static_cast<unsigned>((items + per_block - 1) / per_block); }

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
  return {e.batch,  e.heads, e.q_len,     e.kv_len, e.q_tiles(), e.kv_tiles(),
          tiles, tile_counts, spans, bits, e.spans_per_row};
}

void lower_rows(const ProgramView& program, const Positions& positions, const PlanMemory& plan, Stream stream) {
  const PlanExtents& e = plan.extents;
  const unsigned blocks = blocks_for(e.rows(), kRowWarps);
  if (e.spans_per_row)
    launch(lower_to_spans, blocks, 32 * kRowWarps, 0, stream, program, positions, e, plan.spans);
  else
    launch(lower_to_bits, blocks, 32 * kRowWarps, 0, stream, program, positions, e, plan.bits);
}

void list_tiles(const PlanMemory& plan, Stream stream) {
  const PlanExtents& e = plan.extents;
  const auto lists = static_cast<unsigned>(e.batch) * static_cast<unsigned>(e.heads) * static_cast<unsigned>(e.q_tiles());
  launch(list_tiles_of, lists, kListThreads, 0, stream, plan.view(), plan.tiles, plan.tile_counts);
}

void take_positions(const GivenPositions& given, int batch, int q_len, int kv_len, std::int64_t* kv_lengths, std::int64_t* q_offset,
                    int* near, Stream stream) {
  constexpr int threads = 128;
  launch(take_positions_of, blocks_for(batch, threads), threads, 0, stream, given, batch, q_len, kv_len, kv_lengths, q_offset,
         near);
}

void upload(void* to, const void* from, std::size_t bytes, Stream stream) {
  if (bytes > kUploadByCopy || bytes % sizeof(std::uint64_t) != 0) return copy(to, from, bytes, stream);
  for (std::size_t done = 0; done < bytes; done += sizeof(UploadWords)) {
    UploadWords words;
    const std::size_t part = std::min(bytes - done, sizeof words);
    std::copy_n(static_cast<const char*>(from) + done, part, reinterpret_cast<char*>(words.words));
    launch(write_words, 1, 128, 0, stream, words, static_cast<int>(part / sizeof(std::uint64_t)),
           reinterpret_cast<std::uint64_t*>(static_cast<char*>(to) + done));
  }
}

#if defined(__CUDACC__)
bool capturing(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "the state of a stream");
  return status != cudaStreamCaptureStatusNone;
}
#else
bool capturing(Stream) { return false; }
#endif

}  // namespace maskattn::cuda
