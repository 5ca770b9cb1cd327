// From fragments to the output array.
#pragma once

#include "cuda/fragment_softmax.hpp"
#include "cuda/plain_row.hpp"
#include "cuda/ptx_mma.hpp"

namespace maskattn::cuda {

__device__ inline bool is_finite(float x) { return fabsf(x) < -kMinusInfinity; }

// Two neighbouring columns of a row; `pairs` says that they may be written as one.
template <Dtype kType>
__device__ void store_pair(char* row, int column, int columns, bool pairs, float x, float y) {
  if constexpr (kType == Dtype::float32) {
    float* const to = reinterpret_cast<float*>(row) + column;
    if (pairs && column < columns) {
      *reinterpret_cast<float2*>(to) = make_float2(x, y);
    } else {
      if (column < columns) to[0] = x;
      if (column + 1 < columns) to[1] = y;
    }
  } else {
    std::uint16_t* const to = reinterpret_cast<std::uint16_t*>(row) + column;
    const std::uint32_t word = pack_16<kType>(x, y);
    if (pairs && column < columns) {
      *reinterpret_cast<std::uint32_t*>(to) = word;
    } else {
      if (column < columns) to[0] = static_cast<std::uint16_t>(word);
      if (column + 1 < columns) to[1] = static_cast<std::uint16_t>(word >> 16);
    }
  }
}

// Whether pairs of columns begin at multiples of their size in every row.
template <int kElementBytes>
bool rows_have_pairs(const Rows<void>& rows, int columns) {
  bool even = columns % 2 == 0 && reinterpret_cast<std::uintptr_t>(rows.data) % (2 * kElementBytes) == 0;
  for (const std::ptrdiff_t stride : rows.stride) even = even && stride % 2 == 0;
  return even;
}

template <Dtype kType>
using NumberOf = std::conditional_t<kType == Dtype::float32, float, std::conditional_t<kType == Dtype::float16, Half, Bfloat>>;

// The two rows that a lane has in a fragment: query is the upper one's. Returns a bit for each row that is not finite.
template <Dtype kType, int kColumnTiles>
__device__ unsigned store_rows(const AttentionCall& call, int b, int h, int query, bool pairs, float (&o)[kColumnTiles][4],
                               const RowStates& rows) {
  unsigned odd = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const RowResult result = finish_row(rows.maximum[r], rows.sum[r], call.sinks ? call.sinks + h : nullptr);
    if (query + 8 * r >= queries_of(call, b)) continue;
    char* const to = reinterpret_cast<char*>(at<NumberOf<kType>>(call.out, row_offset(call.out, b, h, query + 8 * r)));
    bool finite = is_finite(result.factor);
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const float x = o[n][2 * r] * result.factor, y = o[n][2 * r + 1] * result.factor;
      finite = finite && is_finite(x) && is_finite(y);
      store_pair<kType>(to, 8 * n + 2 * (threadIdx.x % 4), call.v_head_dim, pairs, x, y);
    }
    if (call.lse && threadIdx.x % 4 == 0) store_lse(call, b, h, query + 8 * r, result.lse);
    odd |= static_cast<unsigned>(!finite) << r;
  }
  return odd;
}

// Computes a row anew without the keys that it does not see: a value that is not finite times a weight of zero is NaN, and
// infinities have no sum of 11-bit numbers. By a warp.
template <Dtype kType, class Stored>
__device__ void compute_again(const AttentionCall& call, const ScoreTerms& terms, PlainRow row, PlainRowMemory& memory) {
  __syncwarp();
  attend_row<NumberOf<kType>, Stored>(call, terms, row, memory);
  __syncwarp();
}

// The rows that are not finite; `odd`, `b`, `h` and `query` as of store_rows.
template <Dtype kType, class Stored = NumberOf<kType>>
__device__ void repair_rows(const AttentionCall& call, const ScoreTerms& terms, int b, int h, int query, unsigned odd,
                            PlainRowMemory& memory) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    std::uint32_t lanes = __ballot_sync(0xffffffffu, odd >> r & 1);
    while (lanes) {
      const int quad = (__ffs(static_cast<int>(lanes)) - 1) / 4;
      lanes &= ~(0xfu << 4 * quad);
      compute_again<kType, Stored>(call, terms, {b, h, h / (call.q_heads / call.kv_heads), query - lane / 4 + quad + 8 * r},
                                   memory);
    }
  }
}

// A row that this warp has stored, if it is not finite.
template <Dtype kType>
__device__ void repair_row(const AttentionCall& call, const ScoreTerms& terms, PlainRow row, PlainRowMemory& memory) {
  const auto* const out = at<NumberOf<kType>>(call.out, row_offset(call.out, row.b, row.head, row.query));
  bool finite = true;
  __syncwarp();
  for (int i = static_cast<int>(threadIdx.x) % 32; i < call.v_head_dim; i += 32) finite = finite && is_finite(to_float(out[i]));
  if (!__all_sync(0xffffffffu, finite)) compute_again<kType, NumberOf<kType>>(call, terms, row, memory);
}

}  // namespace maskattn::cuda
