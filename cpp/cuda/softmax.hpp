// The online softmax of a row. Its maximum is an integer, as an exponent of 2, and the exponential splits off the integer part of
// the score itself: so the maximum only moves exponents, and rescaling is exact.
#pragma once

#include "cuda/portable.hpp"

namespace maskattn::cuda {

inline constexpr float kMinusInfinity = -__builtin_inff();

// 2^f = 1 + f r(f) for f in [-1/2, 1/2], r minimax: r(f); relative error of 2^f 2.6e-9 before rounding.
__device__ inline float exp2_slope(float f) {
  float r = 0x1.470b4ap-13f;
  r = fmaf(r, f, 0x1.5f7276p-10f);
  r = fmaf(r, f, 0x1.3b270ep-7f);
  r = fmaf(r, f, 0x1.c6ae72p-5f);
  r = fmaf(r, f, 0x1.ebfbe2p-3f);
  return fmaf(r, f, 0x1.62e432p-1f);
}

// x * 2^k for an integer k up to 0 and x around 1; 0 where that is not normal, NaN for a k that is NaN.
__device__ inline float times_power_of_two(float x, float k) {
  if (k > -125.f) return __int_as_float(__float_as_int(x) + (static_cast<int>(k) << 23));
  return k != k ? k : 0.f;
}
__device__ inline float power_of_two(float k) { return times_power_of_two(1.f, k); }

// 2^(s * (high + low) - m), m an integer at or above the exponent rounded.
__device__ inline float softmax_weight(float s, float high, float low, float m) {
  const float n = rintf(s * high), f = fmaf(s, low, fmaf(s, high, -n));
  // Beyond 2^22 a score's own spacing is coarser than f should be; there f is kept small.
  const float bounded = fmaxf(-1.f, fminf(f, 1.f));
  return times_power_of_two(fmaf(exp2_slope(bounded), bounded, 1.f), n - m);
}

// 2^x for x up to 0, exact for integers: for maxima that are none.
__device__ inline float exp2_difference(float x) { return softmax_weight(x, 1.f, 0.f, 0.f); }

// A row that has seen nothing has the maximum -inf and the sum 0. Its weights, sums of them and values times them are relative to
// 2^maximum.
struct RowState {
  float maximum = kMinusInfinity, sum = 0;

  // What weights are relative to: 0 where nothing was seen, for (-inf) - (-inf) would be NaN.
  __device__ float base() const { return maximum == kMinusInfinity ? 0.f : maximum; }

  // Takes in that scores up to `top` follow (NaN is passed over); returns the factor of what was summed up before.
  __device__ float raise(float top, float high) {
    if (top == kMinusInfinity) return 1.f;
    const float old = maximum;
    maximum = fmaxf(maximum, rintf(top * high));
    return power_of_two(old - base());
  }
};

// Factor of a part with that maximum where parts are added relative to `merged`; of one that has seen nothing, 0.
__device__ inline float merge_factor(float maximum, float merged) {
  return maximum == kMinusInfinity ? 0.f : exp2_difference(maximum - merged);
}

// What is left to do after the last key: the factor of the summed values, and the natural logarithm of the softmax's denominator.
// A sink is the score of a key without a value; a row that sees nothing stays zero, sink or not.
struct RowResult {
  float factor, lse;
};
__device__ inline RowResult finish(RowState row, const float* sink) {
  constexpr float kLog2EHigh = 0x1.715476p+0f, kLog2ELow = 0x1.4ae0cp-26f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  if (row.sum == 0.f) return {0.f, kMinusInfinity};
  float factor = 1.f;
  if (sink && *sink > kMinusInfinity) {
    const float merged = fmaxf(row.base(), rintf(*sink * kLog2EHigh));
    factor = power_of_two(row.base() - merged);
    row.sum = fmaf(row.sum, factor, softmax_weight(*sink, kLog2EHigh, kLog2ELow, merged));
    row.maximum = merged;
  }
  return {factor / row.sum, fmaf(row.base(), kLn2High, fmaf(row.base(), kLn2Low, logf(row.sum)))};
}

// Over the lanes of a warp, in a fixed tree.
template <class Combine>
__device__ float reduce_warp(float x, const Combine& combine) {
#pragma unroll
  for (int with = 16; with > 0; with /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, with));
  return x;
}
__device__ inline float warp_maximum(float x) {
  return reduce_warp(x, [](float a, float b) { return fmaxf(a, b); });
}
__device__ inline float warp_sum(float x) {
  return reduce_warp(x, [](float a, float b) { return a + b; });
}

}  // namespace maskattn::cuda
