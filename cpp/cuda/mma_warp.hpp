// A warp's part of attention_mma.cu: scores and outputs of kRowTiles x 16 rows in registers.
#pragma once

#include "cuda/fragment_softmax.hpp"
#include "cuda/mma_operands.hpp"

namespace maskattn::cuda {

template <class Operands, int kDim, int kKeys, int kRowTiles>
struct MmaWarp {
  static constexpr int kRowBytes = kDim * Operands::kElementBytes, kKeyTiles = kKeys / 8, kColumnTiles = kDim / 8;
  using A = typename Operands::A;
  using B = typename Operands::B;

  float s[kRowTiles][kKeyTiles][4];  // scores
  typename Operands::template Weights<kKeyTiles> p[kRowTiles];
  float o[kRowTiles][kColumnTiles][4];  // the sum of values
  RowStates rows[kRowTiles];

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][n][i] = 0;
  }

  // s = the warp's queries, from row `first` on, times the keys.
  __device__ void multiply_keys(const char* q, int first, const char* k) {
    const int lane = threadIdx.x % 32, matrix = lane / 8;
    const int query = first + (matrix & 1) * 8 + lane % 8, key = (matrix >> 1) * 8 + lane % 8;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = 0;
    [[maybe_unused]] constexpr int kAtOnce = kRowBytes > 512 ? 2 : 4;  // addresses take registers
#pragma unroll kAtOnce
    for (int step = 0; step < kRowBytes / 32; ++step) {
      A a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        std::uint32_t r[4];
        load_matrices(r, q + swizzled<kRowBytes>(query, matrix >> 1, 16 * m, 2 * step));
        a[m] = Operands::query(r);
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles / 2; ++n) {
        std::uint32_t r[4];
        load_matrices(r, k + swizzled<kRowBytes>(key, matrix & 1, 16 * n, 2 * step));
        const B b[] = {Operands::key(r[0], r[1]), Operands::key(r[2], r[3])};
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i) Operands::multiply(s[m][2 * n + i], a[m], b[i]);
      }
    }
  }

  // Scores become weights; what was summed is brought to the new maxima.
  template <bool kExact>
  __device__ void softmax(SplitFactor log2) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      float rescale[2];
      online_softmax<kExact>(s[m], log2, rows[m], rescale);
      p[m].take(s[m]);
      if (__all_sync(0xffffffffu, rescale[0] == 1 && rescale[1] == 1)) continue;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][n][i] *= rescale[i / 2];
    }
  }

  __device__ void multiply_values(const char* v) {
#pragma unroll
    for (int step = 0; step < kKeys / Operands::kStepKeys; ++step) {
      A a[kRowTiles];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) a[m] = p[m].fragment(step);
#pragma unroll
      for (int n = 0; n < kColumnTiles / 2; ++n) {
        B b[2];
        Operands::template values<kRowBytes>(v, step, n, b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int i = 0; i < 2; ++i) Operands::multiply(o[m][2 * n + i], a[m], b[i]);
      }
    }
  }
};

}  // namespace maskattn::cuda
