// What the blocks of a decode share: which rows and keys are theirs, what those rows see, and how parts become one.
#pragma once

#include "cuda/key_stream.hpp"
#include "cuda/scores.hpp"

namespace maskattn::cuda {

inline constexpr int kMostHeadDim = 256;

// Results of a row over the keys of one split, [batch][kv_heads][rows][splits]: the row's state, and v_head_dim sums, which mean
// nothing where the row has seen nothing.
struct Partials {
  float2* states;  // maximum, sum
  float* sums;
};
inline std::size_t partial_count(const AttentionCall& call, const DecodeShape& shape) {
  return static_cast<std::size_t>(call.batch) * static_cast<std::size_t>(call.kv_heads) * static_cast<std::size_t>(shape.rows) *
         static_cast<std::size_t>(shape.splits);
}

// Which keys of each piece a row sees; what some row sees; what all see.
template <int kRows>
struct Sight {
  std::uint32_t row[kRows][kPieces], any[kPieces], all[kPieces];

  // Some row does not see a key of the piece that another sees: to the first, its values may be anything.
  __device__ bool mixed(int piece) const { return any[piece] != all[piece]; }
};

// By all threads of a block. Returns whether any row sees a key.
template <int kRows>
__device__ bool look(const AttentionCall& call, const DecodeShape& shape, const DecodeBlock& block, Sight<kRows>& sight) {
  const int thread = static_cast<int>(threadIdx.x), threads = 32 * kDecodeWarps, first_tile = block.split * (kSplit / kTile);
  for (int n = thread; n < kRows * kPieces / 2; n += threads) {
    const int r = n / (kPieces / 2), tile = n % (kPieces / 2);
    std::uint64_t word = 0;
    if (r < block.rows && first_tile + tile < call.plan.kv_tiles)
      word = existing(call, block.b, first_tile + tile,
                      call.plan.visible(block.b, block.head(shape, r), block.query(shape, r), first_tile + tile));
    sight.row[r][2 * tile] = static_cast<std::uint32_t>(word);
    sight.row[r][2 * tile + 1] = static_cast<std::uint32_t>(word >> 32);
  }
  __syncthreads();
  if (call.bias) {  // takes away what it hides
    for (int n = thread / 32; n < block.rows * kPieces; n += kDecodeWarps) {
      const int r = n / kPieces, piece = n % kPieces, key = block.split * kSplit + piece * kPiece + thread % 32;
      const std::uint32_t word = sight.row[r][piece];
      const bool shown =
          (word >> thread % 32 & 1) && !hidden_by_bias(call, block.b, block.head(shape, r), block.query(shape, r), key);
      const std::uint32_t left = __ballot_sync(0xffffffffu, shown);
      if (thread % 32 == 0) sight.row[r][piece] = left;
    }
    __syncthreads();
  }
  std::uint32_t any = 0, all = ~std::uint32_t{0};
  if (thread < kPieces) {
    for (int r = 0; r < block.rows; ++r) {
      any |= sight.row[r][thread];
      all &= sight.row[r][thread];
    }
    sight.any[thread] = any;
    sight.all[thread] = all;
  }
  return __syncthreads_or(any != 0);
}

// The end of a block: a row's results of the warps, added in their order, become the split's, or, where that is the only one, the
// call's. By all threads; `sums` has kRows rows of kColumns for each warp, `stride` floats apart.
template <int kRows, int kColumns>
__device__ void finish_split(const AttentionCall& call, const DecodeShape& shape, const DecodeBlock& block,
                             const Partials& partials, const RowState (&states)[kDecodeWarps][kRows], const float* sums,
                             int stride) {
  for (int n = static_cast<int>(threadIdx.x); n < block.rows * call.v_head_dim; n += 32 * kDecodeWarps) {
    const int r = n / call.v_head_dim, column = n % call.v_head_dim;
    RowState merged;
    float value = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) merged.maximum = fmaxf(merged.maximum, states[w][r].maximum);
    merged.sum = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float factor = merge_factor(states[w][r].maximum, merged.maximum);
      merged.sum = fmaf(states[w][r].sum, factor, merged.sum);
      value = fmaf(sums[w * stride + r * kColumns + column], factor, value);
    }
    const int head = block.head(shape, r), query = block.query(shape, r);
    if (shape.splits == 1) {
      const RowResult result = finish(merged, call.sinks ? call.sinks + head : nullptr);
      write_float(call.out.data, call.dtype, row_offset(call.out, block.b, head, query) + column, value * result.factor);
      if (call.lse && column == 0) store_lse(call, block.b, head, query, result.lse);
    } else {
      const std::int64_t partial = block.partial(call, shape, r);
      if (column == 0) partials.states[partial] = make_float2(merged.maximum, merged.sum);
      partials.sums[partial * call.v_head_dim + column] = value;
    }
  }
}

// The end of a block that sees nothing.
__device__ inline void finish_unseen_split(const AttentionCall& call, const DecodeShape& shape, const DecodeBlock& block,
                                           const Partials& partials) {
  for (int n = static_cast<int>(threadIdx.x); n < block.rows * call.v_head_dim; n += 32 * kDecodeWarps) {
    const int r = n / call.v_head_dim, column = n % call.v_head_dim, head = block.head(shape, r), query = block.query(shape, r);
    if (shape.splits == 1) {
      write_float(call.out.data, call.dtype, row_offset(call.out, block.b, head, query) + column, 0.f);
      if (call.lse && column == 0) store_lse(call, block.b, head, query, kMinusInfinity);
    } else if (column == 0) {
      partials.states[block.partial(call, shape, r)] = make_float2(kMinusInfinity, 0.f);
    }
  }
}

}  // namespace maskattn::cuda
