// The rows of a warp in a decode of 16-bit floats, on tensor cores: 16 rows, so that a group of query heads costs little more
// than one head, and multiplying never takes as long as reading. Fragments as in ptx_mma.hpp.
#pragma once

#include "cuda/decode_split.hpp"
#include "cuda/fragment_softmax.hpp"
#include "cuda/ptx_mma.hpp"

namespace maskattn::cuda {

template <Dtype kType, int kMostColumns>
class MatrixRows {
 public:
  using T = std::conditional_t<kType == Dtype::float16, Half, Bfloat>;
  using Stored = T;
  static constexpr int kColumns = kMostColumns, kRows = 16;
  using S = Slots<T, kColumns>;
  static constexpr int kParts = kColumns * 2 / S::kPart;  // of the widest values
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr int kBlocks = 2;  // of a multiprocessor: those that shared memory has room for
#else
  static constexpr int kBlocks = kColumns > 128 ? 2 : 3;
#endif

  struct Memory {
    T query[kRows][kMostHeadDim + 8];  // 16 bytes more than a row: 8 rows are in different banks
    RowState states[kDecodeWarps][kRows];
    Sight<kRows> sight;
    DecodeBlock block;

    __device__ void set_query(int r, int d, float x) { query[r][d] = from_float<T>(x); }
  };

  __device__ MatrixRows(const AttentionCall& call, const ScoreTerms& terms, const DecodeShape& shape, Memory& memory)
      : call_(call), terms_(terms), shape_(shape), block_(memory.block), memory_(memory) {}

  __device__ void begin(int) {}

  __device__ void add_products(const char* keys, int part) {
    const int units = call_.head_dim / 8 - part * S::kUnits;
    [[maybe_unused]] constexpr int kAtOnce = kColumns > 128 ? 1 : 2;  // more would not fit into registers
#pragma unroll kAtOnce
    for (int unit = 0; unit < S::kUnits && unit < units; unit += 2) {  // 16 coordinates
      std::uint32_t q[4];
      load_matrices(q, &memory_.query[(matrix_ & 1) * 8 + lane_ % 8][(part * S::kUnits + unit + (matrix_ >> 1)) * 8]);
#pragma unroll
      for (int j = 0; j < kKeyTiles; j += 2) {
        std::uint32_t k[4];
        load_matrices(k, keys + S::unit_offset(8 * j + (matrix_ >> 1) * 8 + lane_ % 8, unit + (matrix_ & 1)));
        mma_16x8x16<kType>(s_[j], q, k[0], k[1]);
        mma_16x8x16<kType>(s_[j + 1], q, k[2], k[3]);
      }
    }
  }

  // Scores become weights of 16 bits. Maxima are not rounded: the largest weight is 1 then, which is exact.
  __device__ void softmax(int piece) {
    const bool modified = terms_.biased || terms_.cap != 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = lane_ / 4 + 8 * i;
      const std::uint32_t seen = memory_.sight.row[r][piece] >> (2 * (lane_ % 4));
      if (modified) finish_scores(piece, r, i, seen);
#pragma unroll
      for (int j = 0; j < kKeyTiles; ++j)
#pragma unroll
        for (int n = 0; n < 2; ++n)
          if (!(seen >> (8 * j + n) & 1)) s_[j][2 * i + n] = kMinusInfinity;
    }
    float rescale[2];
    online_softmax<false>(s_, terms_.log2, state_, rescale);
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        weights_[j / 2][j % 2 * 2 + i] = pack_16<kType>(s_[j][2 * i], s_[j][2 * i + 1]);
        s_[j][2 * i] = s_[j][2 * i + 1] = 0;
      }
    if (__all_sync(0xffffffffu, rescale[0] == 1.f && rescale[1] == 1.f)) return;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[n][i] *= rescale[i / 2];
  }

  // `part` is a constant where this is inlined, or the sums would not be registers.
  __device__ __forceinline__ void add_values(const char* values, int part, int piece) {
    if (memory_.sight.mixed(piece) && any_not_finite(values)) return add_values_row_by_row(values, part, piece);
#pragma unroll
    for (int step = 0; step < kPiece / 16; ++step)
#pragma unroll
      for (int unit = 0; unit < S::kUnits; unit += 2) {
        std::uint32_t v[4];
        load_values(values, step, unit, v);
        mma_16x8x16<kType>(sums_[part * S::kUnits + unit], weights_[step], v[0], v[1]);
        mma_16x8x16<kType>(sums_[part * S::kUnits + unit + 1], weights_[step], v[2], v[3]);
      }
  }

  // The sums to [kRows][kColumns] of the warp, and the states; both relative to a maximum that is an integer, as splits are
  // added.
  __device__ void store(float* sums) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = lane_ / 4 + 8 * i;
      const float sum = quad_sum(state_.sum[i]), maximum = state_.maximum[i], whole = rintf(maximum);
      const float factor = maximum == kMinusInfinity ? 1.f : exp2_difference(maximum - whole);
      if (lane_ % 4 == 0) {
        memory_.states[threadIdx.x / 32][r].maximum = whole;
        memory_.states[threadIdx.x / 32][r].sum = sum * factor;
      }
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
        *reinterpret_cast<float2*>(sums + r * kColumns + 8 * n + 2 * (lane_ % 4)) =
            make_float2(sums_[n][2 * i] * factor, sums_[n][2 * i + 1] * factor);
    }
  }

 private:
  static constexpr int kKeyTiles = kPiece / 8;

  __device__ void finish_scores(int piece, int r, int i, std::uint32_t seen) {
    const int first = block_.split * kSplit + piece * kPiece + 2 * (lane_ % 4);
    const int head = block_.head(shape_, r), query = block_.query(shape_, r);
#pragma unroll
    for (int j = 0; j < kKeyTiles; ++j)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        if (seen >> (8 * j + n) & 1)
          s_[j][2 * i + n] = finished_score(call_, terms_, s_[j][2 * i + n], block_.b, head, query, first + 8 * j + n);
  }

  // Two operands of 8 columns, from `unit` on, and the 16 keys of a step.
  __device__ void load_values(const char* values, int step, int unit, std::uint32_t (&v)[4]) const {
    load_matrices_transposed(v, values + S::unit_offset(16 * step + (matrix_ & 1) * 8 + lane_ % 8, unit + (matrix_ >> 1)));
  }

  __device__ bool any_not_finite(const char* values) const {
    constexpr std::uint32_t exponent = kType == Dtype::float16 ? 0x7c00 : 0x7f80;
    bool found = false;
    for (int n = lane_; n < S::kBytes / 4; n += 32) {
      const std::uint32_t pair = reinterpret_cast<const std::uint32_t*>(values)[n];
      found = found || (pair & exponent) == exponent || (pair >> 16 & exponent) == exponent;
    }
    return __any_sync(0xffffffffu, found);
  }

  // The same products with zeros for the values that a row does not see, for one row after another: a weight of zero times a
  // value that is not finite would be NaN.
  __device__ __forceinline__ void add_values_row_by_row(const char* values, int part, int piece) {
#pragma unroll 1
    for (int r = 0; r < block_.rows; ++r) {
      const std::uint32_t seen = memory_.sight.row[r][piece] >> (2 * (lane_ % 4));
#pragma unroll
      for (int unit = 0; unit < S::kUnits; unit += 2) {
        float both[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) both[i / 4][i % 4] = sums_[part * S::kUnits + unit + i / 4][i % 4];
#pragma unroll
        for (int step = 0; step < kPiece / 16; ++step) {
          std::uint32_t v[4];
          load_values(values, step, unit, v);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const std::uint32_t bits = seen >> (16 * step + 8 * (i % 2));  // of two keys
            v[i] &= (bits & 1 ? 0xffffu : 0u) | (bits & 2 ? 0xffff0000u : 0u);
          }
          mma_16x8x16<kType>(both[0], weights_[step], v[0], v[1]);
          mma_16x8x16<kType>(both[1], weights_[step], v[2], v[3]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (lane_ / 4 + (i % 4 / 2) * 8 == r) sums_[part * S::kUnits + unit + i / 4][i % 4] = both[i / 4][i % 4];
      }
    }
  }

  const AttentionCall& call_;
  const ScoreTerms& terms_;
  const DecodeShape& shape_;
  const DecodeBlock& block_;
  Memory& memory_;
  const int lane_ = static_cast<int>(threadIdx.x) % 32, matrix_ = lane_ / 8;
  float s_[kKeyTiles][4] = {};
  std::uint32_t weights_[kPiece / 16][4];
  float sums_[kColumns / 8][4] = {};
  RowStates state_;
};

}  // namespace maskattn::cuda
