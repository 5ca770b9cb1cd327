// The rows of a warp in a decode of float32 or of int8 with scales, without matrix units: a lane has one key of a piece while
// scores are made, and then columns of the values. Scales are multiplied once for a key: into its score, and into its weight.
#pragma once

#include "cuda/decode_split.hpp"

namespace maskattn::cuda {

template <class StoredNumber, int kMostColumns, int kMostRows>
class VectorRows {
 public:
  using Stored = StoredNumber;
  static constexpr int kColumns = kMostColumns, kRows = kMostRows;
  using S = Slots<Stored, kColumns>;
  static constexpr int kParts = kColumns * static_cast<int>(sizeof(Stored)) / S::kPart;  // of the widest values
  static constexpr int kBlocks = 2;                                                      // of a multiprocessor

  struct Memory {
    float query[kRows][kMostHeadDim];
    float weights[kDecodeWarps][kRows][kPiece];    // first the scores
    float lane_sums[kDecodeWarps][kRows][kPiece];  // of the weights of each lane's keys
    float factors[kDecodeWarps][kRows];            // of what was summed up before the last piece
    RowState states[kDecodeWarps][kRows];
    Sight<kRows> sight;
    DecodeBlock block;

    __device__ void set_query(int r, int d, float x) { query[r][d] = x; }
  };

  __device__ VectorRows(const AttentionCall& call, const ScoreTerms& terms, const DecodeShape& shape, Memory& memory)
      : call_(call), terms_(terms), shape_(shape), block_(memory.block), memory_(memory) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      memory.lane_sums[warp_][r][lane_] = 0;
      if (lane_ == 0) memory.states[warp_][r] = RowState();
      if (lane_ == 0) memory.factors[warp_][r] = 1;  // of rows that are not there, too
    }
    __syncwarp();
  }

  // Before the keys of a piece are here.
  __device__ void begin(int piece) {
    if constexpr (!kScaled) return;
    k_scale_ = v_scale_ = 0;
    if (!(memory_.sight.any[piece] >> lane_ & 1)) return;
    const int key = block_.split * kSplit + piece * kPiece + lane_;
    const std::int64_t at = scale_offset(call_, page_of(call_, block_.b, key), block_.kv_head, key % call_.page_size);
    k_scale_ = call_.k_scales[at];
    v_scale_ = call_.v_scales[at];
  }

  // A chain for each 32 columns, added in order.
  __device__ void add_products(const char* keys, int part) {
    constexpr int kUnitColumns = 16 / static_cast<int>(sizeof(Stored)), kChain = 32 / kUnitColumns;
    const int units = call_.head_dim / kUnitColumns - part * S::kUnits;
    const float* query = &memory_.query[0][part * S::kUnits * kUnitColumns];
#pragma unroll 1
    for (int first = 0; first < S::kUnits && first < units; first += kChain) {
      float chain[kRows] = {};
#pragma unroll
      for (int unit = first; unit < first + kChain; ++unit) {
        if (unit >= units) break;
        float k[kUnitColumns];
        load_floats<Stored, 16>(keys + S::unit_offset(lane_, unit), k);
#pragma unroll
        for (int d = 0; d < kUnitColumns; d += 4)
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const float4 q = *reinterpret_cast<const float4*>(query + r * kMostHeadDim + unit * kUnitColumns + d);
            chain[r] = fmaf(q.w, k[d + 3], fmaf(q.z, k[d + 2], fmaf(q.y, k[d + 1], fmaf(q.x, k[d], chain[r]))));
          }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) scores_[r] += chain[r];
    }
  }

  // Scores become weights, which every lane may read then. Rows are a loop that is not unrolled: it is long.
  __device__ void softmax(int piece) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      memory_.weights[warp_][r][lane_] = kScaled ? scores_[r] * k_scale_ : scores_[r];
      scores_[r] = 0;
    }
#pragma unroll 1
    for (int r = 0; r < block_.rows; ++r) softmax_row(piece, r);
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float factor = memory_.factors[warp_][r];
      if (factor == 1.f) continue;
#pragma unroll
      for (int n = 0; n < kParts; ++n)
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c) sums_[r][n][c] *= factor;
    }
  }

  // `part` is a constant where this is inlined, or the sums would not be registers.
  __device__ __forceinline__ void add_values(const char* values, int part, int piece) {
    if (memory_.sight.mixed(piece))
      add_values<true>(values, part, piece);
    else
      add_values<false>(values, part, piece);
  }

  // The sums to [kRows][kColumns] of the warp, and the states.
  __device__ void store(float* sums) {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = warp_sum(memory_.lane_sums[warp_][r][lane_]);
      if (lane_ == 0) memory_.states[warp_][r].sum = sum;
#pragma unroll
      for (int n = 0; n < kParts; ++n)
#pragma unroll
        for (int c = 0; c < kLaneColumns; ++c)
          sums[r * kColumns + n * 32 * kLaneColumns + lane_ * kLaneColumns + c] = sums_[r][n][c];
    }
  }

 private:
  static constexpr bool kScaled = std::is_same_v<Stored, std::int8_t>;
  static constexpr int kLaneBytes = S::kPart / 32, kLaneColumns = kLaneBytes / static_cast<int>(sizeof(Stored));

  __device__ void softmax_row(int piece, int r) {
    const int key = block_.split * kSplit + piece * kPiece + lane_;
    float& slot = memory_.weights[warp_][r][lane_];
    const bool seen = memory_.sight.row[r][piece] >> lane_ & 1;
    const float s = seen ? finished_score(call_, terms_, slot, block_.b, block_.head(shape_, r), block_.query(shape_, r), key)
                         : kMinusInfinity;
    RowState state = memory_.states[warp_][r];
    const float factor = state.raise(warp_maximum(s), terms_.log2.high);  // by now all lanes have read the state
    const float weight = seen ? softmax_weight(s, terms_.log2.high, terms_.log2.low, state.base()) : 0.f;
    float& sum = memory_.lane_sums[warp_][r][lane_];
    sum = fmaf(sum, factor, weight);
    slot = kScaled && seen ? weight * v_scale_ : weight;
    if (lane_ == 0) {
      memory_.factors[warp_][r] = factor;
      memory_.states[warp_][r] = state;
    }
  }

  template <bool kMixed>
  __device__ __forceinline__ void add_values(const char* values, int part, int piece) {
#pragma unroll 1
    for (int first = 0; first < kPiece; first += 4) {
      float4 weight[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) weight[r] = *reinterpret_cast<const float4*>(&memory_.weights[warp_][r][first]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float v[kLaneColumns];
        const int byte = lane_ * kLaneBytes;
        load_floats<Stored, kLaneBytes>(values + S::unit_offset(first + i, byte / 16) + byte % 16, v);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (kMixed && !(memory_.sight.row[r][piece] >> (first + i) & 1)) continue;
          const float p = i == 0 ? weight[r].x : i == 1 ? weight[r].y : i == 2 ? weight[r].z : weight[r].w;
#pragma unroll
          for (int c = 0; c < kLaneColumns; ++c) sums_[r][part][c] = fmaf(p, v[c], sums_[r][part][c]);
        }
      }
    }
  }

  const AttentionCall& call_;
  const ScoreTerms& terms_;
  const DecodeShape& shape_;
  const DecodeBlock& block_;
  Memory& memory_;
  const int warp_ = static_cast<int>(threadIdx.x) / 32, lane_ = static_cast<int>(threadIdx.x) % 32;
  float k_scale_ = 1, v_scale_ = 1;  // of this lane's key, where numbers are scaled
  float scores_[kRows] = {}, sums_[kRows][kParts][kLaneColumns] = {};
};

}  // namespace maskattn::cuda
