// The online softmax of scores that lie in the fragments of tensor cores: lane l has, of 8 keys from 8 j on, scores s[j][0],
// s[j][1] of row l / 4 and s[j][2], s[j][3] of row l / 4 + 8, keys 8 j + 2 (l % 4) and the next.
#pragma once

#include "cuda/scores.hpp"
#include "cuda/softmax.hpp"

namespace maskattn::cuda {

#if defined(__CUDACC__)
// 2^x with a relative error of 2^-22; 0 where that is below float's normal numbers.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else
inline float fast_exp2(float x) { return x < -126 ? 0 : std::exp2(x); }
#endif

// Of the two rows that a lane has in a fragment: the largest score so far, as an exponent of 2; this lane's part of the sum of
// weights relative to it.
struct RowStates {
  float maximum[2] = {kMinusInfinity, kMinusInfinity}, sum[2] = {};
};

// Of the four lanes that share rows.
__device__ inline float quad_maximum(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Scores of keys whose bit is 0 become minus infinity.
template <int kTiles>
__device__ void hide(float (&s)[kTiles][4], std::uint64_t upper_row, std::uint64_t lower_row) {
  static_assert(kTiles <= 8);
  const int shift = 2 * (threadIdx.x % 4);
  upper_row >>= shift;
  lower_row >>= shift;
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!(upper_row >> (8 * j + i) & 1)) s[j][i] = kMinusInfinity;
      if (!(lower_row >> (8 * j + i) & 1)) s[j][i + 2] = kMinusInfinity;
    }
}

// Whether finish_scores has anything to do that hide has not.
inline bool has_terms(const AttentionCall& call) {
  return call.softcap != 0 || call.bias || call.bias_table || call.slopes || call.scale < 0;
}
// Times 0, the score of a hidden key would be NaN.
inline bool can_scale(const AttentionCall& call) { return call.scale > 0 || call.scale < 0; }

// Which rows a fragment has: those at `query` and query + 8 of a head, and the keys from `key` on (this lane's first).
struct FragmentPlace {
  int b, head, query, key;
};

// Hides where a number comes from: what is computed of it is not computed ahead, in registers that the kernels have no more.
__device__ inline int opaque(int x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// q.k of pairs that are seen become scores as finished_score makes them, others minus infinity.
template <int kTiles>
__device__ void finish_scores(const AttentionCall& call, const ScoreTerms& terms, float (&s)[kTiles][4], FragmentPlace place,
                              std::uint64_t upper_row, std::uint64_t lower_row) {
  const int shift = 2 * (threadIdx.x % 4);
  place.key = opaque(place.key);
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool seen = (i < 2 ? upper_row : lower_row) >> (shift + 8 * j + i % 2) & 1;
      const int query = place.query + i / 2 * 8, key = place.key + 8 * j + i % 2;
      if (!seen || hidden_by_bias(call, place.b, place.head, query, key))
        s[j][i] = kMinusInfinity;
      else
        s[j][i] = finished_score(call, terms, terms.sign * s[j][i], place.b, place.head, query, key);
    }
}

// Takes the scores of kTiles * 8 keys into the rows' states and leaves weights. What was summed so far must be multiplied with
// rescale. kExact: by the arithmetic of softmax.hpp; else maxima are not rounded, so that the largest weight has no error when it
// is rounded to 16 bits, and the special function unit makes the powers.
template <bool kExact, int kTiles>
__device__ void online_softmax(float (&s)[kTiles][4], SplitFactor log2, RowStates& rows, float (&rescale)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = fmaxf(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
    for (int j = 1; j < kTiles; ++j) largest = fmaxf(largest, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
    const float top = quad_maximum(largest) * log2.high, maximum = fmaxf(rows.maximum[r], kExact ? rintf(top) : top);
    const float base = maximum == kMinusInfinity ? 0.f : maximum;  // (-inf) - (-inf) would be NaN
    rescale[r] = kExact ? power_of_two(rows.maximum[r] - base) : fast_exp2(rows.maximum[r] - base);
    rows.maximum[r] = maximum;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        if constexpr (kExact)
          s[j][i] = s[j][i] == kMinusInfinity ? 0.f : softmax_weight(s[j][i], log2.high, log2.low, base);
        else
          s[j][i] = fast_exp2(fmaf(s[j][i], log2.high, -base));
        sum += s[j][i];
      }
    rows.sum[r] = fmaf(rows.sum[r], rescale[r], sum);
  }
}

// finish() of softmax.hpp for maxima that may be no integers.
__device__ inline RowResult finish_row(float maximum, float lane_sum, const float* sink) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  float sum = quad_sum(lane_sum), factor = 1;
  if (sum == 0) return {0.f, kMinusInfinity};
  if (sink && *sink > kMinusInfinity) {
    const float score = *sink * kLog2E, merged = fmaxf(maximum, score);
    factor = exp2_difference(maximum - merged);
    sum = fmaf(sum, factor, exp2_difference(score - merged));
    maximum = merged;
  }
  return {factor / sum, fmaf(maximum, kLn2High, fmaf(maximum, kLn2Low, logf(sum)))};
}

}  // namespace maskattn::cuda
