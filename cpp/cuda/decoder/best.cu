#include "cuda/decoder/best.hpp"

#include <algorithm>

namespace maskattn::cuda {
namespace {

constexpr int kThreads = 256, kWarpSize = 32, kWarps = kThreads / kWarpSize;
constexpr int kPart = 4096;  // scores that a block looks at
constexpr unsigned kAllLanes = 0xffffffffu;

MASKATTN_HD int parts_of(int width) { return (width + kPart - 1) / kPart; }

// Of a part of a row, beside its candidates: the largest score, and the sum of exp(score - largest).
struct PartSum {
  float largest, sum;
};
__device__ PartSum joined(PartSum a, PartSum b) {
  if (a.largest == -INFINITY) return b;
  if (b.largest == -INFINITY) return a;
  const float largest = fmaxf(a.largest, b.largest);
  return {largest, a.sum * expf(a.largest - largest) + b.sum * expf(b.largest - largest)};
}

// The best of what all threads have, in all threads.
__device__ Candidate block_best(Candidate mine) {
  MASKATTN_SHARED float values[kWarps];
  MASKATTN_SHARED int indices[kWarps];
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const Candidate other{__shfl_xor_sync(kAllLanes, mine.value, step), __shfl_xor_sync(kAllLanes, mine.index, step)};
    if (better(other, mine)) mine = other;
  }
  __syncthreads();  // what was written for the last one may be read still
  if (threadIdx.x % kWarpSize == 0) {
    values[threadIdx.x / kWarpSize] = mine.value;
    indices[threadIdx.x / kWarpSize] = mine.index;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    const Candidate other{values[warp], indices[warp]};
    if (better(other, mine)) mine = other;
  }
  return mine;
}

__device__ PartSum block_sum(PartSum mine) {
  MASKATTN_SHARED float largest[kWarps];
  MASKATTN_SHARED float sums[kWarps];
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    mine = joined(mine, {__shfl_xor_sync(kAllLanes, mine.largest, step), __shfl_xor_sync(kAllLanes, mine.sum, step)});
  if (threadIdx.x % kWarpSize == 0) {
    largest[threadIdx.x / kWarpSize] = mine.largest;
    sums[threadIdx.x / kWarpSize] = mine.sum;
  }
  __syncthreads();
  PartSum all{largest[0], sums[0]};
  for (int warp = 1; warp < kWarps; ++warp) all = joined(all, {largest[warp], sums[warp]});
  return all;
}

// The `wanted` best of `count` candidates, one after another: each time the best of those behind the last one.
template <class At>
__device__ void select(int count, int wanted, Candidate* found, const At& at) {
  Candidate last{INFINITY, -1};
  for (int k = 0; k < wanted; ++k) {
    Candidate mine = no_candidate();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const Candidate other = at(i);
      if (better(last, other) && better(other, mine)) mine = other;
    }
    last = block_best(mine);
    if (threadIdx.x == 0) found[k] = last;
  }
}

__global__ void __launch_bounds__(kThreads) best_of_parts(BestCall call, Candidate* found, PartSum* sums) {
  const int parts = parts_of(call.width), part = static_cast<int>(blockIdx.x) % parts, row = static_cast<int>(blockIdx.x) / parts;
  const int first = part * kPart, count = min(kPart, call.width - first);
  const float* scores = call.scores + std::int64_t{row} * call.width + first;
  const std::int64_t at = std::int64_t{row} * parts + part;
  select(count, call.count, found + at * call.count, [&](int i) { return Candidate{scores[i], first + i}; });
  if (!call.logsumexp) return;
  PartSum mine{-INFINITY, 0};
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) mine.largest = fmaxf(mine.largest, scores[i]);
  if (mine.largest != -INFINITY)
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) mine.sum += expf(scores[i] - mine.largest);
  const PartSum all = block_sum(mine);
  if (threadIdx.x == 0) sums[at] = all;
}

__global__ void __launch_bounds__(kThreads) best_of_rows(BestCall call, int parts, const Candidate* found, const PartSum* sums) {
  const int row = static_cast<int>(blockIdx.x);
  const Candidate* candidates = found + std::int64_t{row} * parts * call.count;
  select(parts * call.count, call.count, call.found + std::int64_t{row} * call.count, [&](int i) { return candidates[i]; });
  if (!call.logsumexp || threadIdx.x != 0) return;
  PartSum all = sums[std::int64_t{row} * parts];
  for (int part = 1; part < parts; ++part) all = joined(all, sums[std::int64_t{row} * parts + part]);
  call.logsumexp[row] = all.largest == -INFINITY ? -INFINITY : all.largest + logf(all.sum);
}

}  // namespace

std::size_t best_workspace_bytes(const BestCall& call) {
  const auto parts = static_cast<std::size_t>(call.rows) * static_cast<std::size_t>(parts_of(call.width));
  return parts * (static_cast<std::size_t>(call.count) * sizeof(Candidate) + sizeof(PartSum));
}

void best(const BestCall& call, void* workspace, Stream stream) {
  const int parts = parts_of(call.width);
  auto* found = static_cast<Candidate*>(workspace);
  auto* sums = reinterpret_cast<PartSum*>(found + std::int64_t{call.rows} * parts * call.count);
  launch(best_of_parts, std::int64_t{call.rows} * parts, kThreads, 0, stream, call, found, sums);
  launch(best_of_rows, call.rows, kThreads, 0, stream, call, parts, found, sums);
}

}  // namespace maskattn::cuda
