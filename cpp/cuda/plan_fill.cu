// Plans as arrays, written at the memory's rate: a lane finds out about 64 keys, and the warp writes what its lanes know.
#include "cuda/plan_build.hpp"

namespace maskattn::cuda {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarps = 8;
constexpr int kWarpKeys = 32 * 64;  // of one row

// A row and where a warp's keys begin.
struct WarpPlace {
  std::int64_t row;  // of [batch][heads][q_len]
  int b, h, i, first;
};

__device__ WarpPlace place_of(const PlanView& plan, int heads, std::int64_t index) {
  const int groups = (plan.kv_tiles + 31) / 32;
  const std::int64_t row = index / groups, strip = row / plan.q_len;
  return {row, static_cast<int>(strip / heads), static_cast<int>(strip % heads), static_cast<int>(row % plan.q_len),
          static_cast<int>(index % groups) * kWarpKeys};
}

__device__ Word word_of_lane(const PlanView& plan, const WarpPlace& place, int lane) {
  const int tile = place.first / 64 + lane;
  return tile < plan.kv_tiles ? plan.visible(place.b, place.h, place.i, tile) : 0;
}

// 16 bytes of elements, those of the lowest bits.
template <class Element>
__device__ uint4 elements_of(Word bits, Element shown, Element hidden) {
  constexpr int count = 16 / sizeof(Element);
  union {
    Element elements[count];
    uint4 all;
  } out;
#pragma unroll
  for (int j = 0; j < count; ++j) out.elements[j] = bits >> j & 1 ? shown : hidden;
  return out.all;
}

// kWhole: rows are multiples of 16 bytes, and so is where they begin.
template <class Element, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps)
    fill_of(PlanView plan, int heads, std::int64_t warps, Element* out, Element shown, Element hidden) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= warps) return;
  const int lane = threadIdx.x % 32;
  const WarpPlace place = place_of(plan, heads, index);
  const Word mine = word_of_lane(plan, place, lane);
  constexpr int step = kWhole ? 16 / static_cast<int>(sizeof(Element)) : 1;  // elements that a lane writes at a time
  Element* row = out + place.row * plan.kv_len + place.first;
  const int keys = plan.kv_len - place.first;
  for (int base = 0; base < kWarpKeys && base < keys; base += 32 * step) {
    const int at = base + lane * step;
    const Word bits = __shfl_sync(kAllLanes, mine, at / 64) >> (at % 64);
    if (at >= keys) continue;
    if constexpr (kWhole)
      *reinterpret_cast<uint4*>(row + at) = elements_of(bits, shown, hidden);
    else
      row[at] = bits & 1 ? shown : hidden;
  }
}

template <bool kWhole>
__global__ void __launch_bounds__(32 * kWarps) fill_bits_of(PlanView plan, int heads, std::int64_t warps, std::uint8_t* out) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= warps) return;
  const int lane = threadIdx.x % 32, row_bytes = plan.kv_len / 8 + (plan.kv_len % 8 != 0);
  const WarpPlace place = place_of(plan, heads, index);
  const Word word = word_of_lane(plan, place, lane);
  std::uint8_t* row = out + place.row * row_bytes;
  const int at = place.first / 8 + 8 * lane;
  if constexpr (kWhole) {
    if (at < row_bytes) *reinterpret_cast<Word*>(row + at) = word;
  } else {
    for (int byte = 0; byte < 8 && at + byte < row_bytes; ++byte) row[at + byte] = static_cast<std::uint8_t>(word >> (8 * byte));
  }
}

std::int64_t warps_of(const PlanView& plan, int batch, int heads) {
  return std::int64_t{batch} * heads * plan.q_len * ((plan.kv_tiles + 31) / 32);
}

std::int64_t blocks_of(std::int64_t warps) { return (warps + kWarps - 1) / kWarps; }

bool whole(const void* out, std::int64_t row_bytes, int unit) {
  return row_bytes % unit == 0 && reinterpret_cast<std::uintptr_t>(out) % static_cast<std::uintptr_t>(unit) == 0;
}

template <class Element>
void fill(const PlanView& plan, int batch, int heads, void* out, std::uint64_t shown, std::uint64_t hidden, Stream stream) {
  const std::int64_t warps = warps_of(plan, batch, heads);
  const bool aligned = whole(out, std::int64_t{plan.kv_len} * static_cast<std::int64_t>(sizeof(Element)), 16);
  launch(aligned ? fill_of<Element, true> : fill_of<Element, false>, blocks_of(warps), 32 * kWarps, 0, stream, plan, heads, warps,
         static_cast<Element*>(out), static_cast<Element>(shown), static_cast<Element>(hidden));
}

}  // namespace

void fill(const PlanView& plan, int batch, int heads, void* out, int element_bytes, std::uint64_t shown, std::uint64_t hidden,
          Stream stream) {
  switch (element_bytes) {
    case 1: return fill<std::uint8_t>(plan, batch, heads, out, shown, hidden, stream);
    case 2: return fill<std::uint16_t>(plan, batch, heads, out, shown, hidden, stream);
    case 4: return fill<std::uint32_t>(plan, batch, heads, out, shown, hidden, stream);
    default: return fill<std::uint64_t>(plan, batch, heads, out, shown, hidden, stream);
  }
}

void fill_bits(const PlanView& plan, int batch, int heads, std::uint8_t* out, Stream stream) {
  const std::int64_t warps = warps_of(plan, batch, heads);
  launch(whole(out, (std::int64_t{plan.kv_len} + 7) / 8, 8) ? fill_bits_of<true> : fill_bits_of<false>, blocks_of(warps),
         32 * kWarps, 0, stream, plan, heads, warps, out);
}

}  // namespace maskattn::cuda
