// From q.k to the score that the softmax takes: scale, softcap, bias, in ONNX's order, by the arithmetic of the CPU's kernels.
#pragma once

#include <cmath>

#include "cuda/numbers.hpp"
#include "cuda/softmax.hpp"

namespace maskattn::cuda {

// A constant as a sum of two floats: where scores are large, the rounding of one would show.
struct SplitFactor {
  float high, low;
};
inline SplitFactor split_factor(double x) {
  const float high = static_cast<float>(x);
  return {high, static_cast<float>(x - static_cast<double>(high))};
}

// What the scores of a call go through: q.k * sign, then cap(), then add_bias(), each if there is one. The result times `log2` is
// the exponent of 2 that the softmax means.
struct ScoreTerms {
  float sign;  // of the scale, which is positive below
  SplitFactor scale, log2, cap_factor;
  float cap;  // 0: none
  bool biased;
};

inline ScoreTerms score_terms(const AttentionCall& call) {
  constexpr double kLog2E = 1.4426950408889634074;
  ScoreTerms terms{};
  const double size = std::fabs(static_cast<double>(call.scale)), scale = call.softcap != 0 ? 1 : size;
  terms.sign = call.scale < 0 ? -1.f : 1.f;
  terms.biased = call.bias || call.bias_table || call.slopes;
  terms.scale = split_factor(scale);
  terms.log2 = split_factor(terms.biased ? kLog2E : scale * kLog2E);
  terms.cap = call.softcap;
  if (call.softcap != 0) terms.cap_factor = split_factor(2 * kLog2E * size / static_cast<double>(call.softcap));
  return terms;
}

// A score with its bias stays where its exponent is finite: float's lowest number, the "minus infinity" of many masks, would not.
inline constexpr float kLargestScore = 1e38f;

// cap * tanh(s * scale / cap), by way of e = 2^(negative exponent) - 1, tanh |x| = -e / (2 + e). Grouped so that small scores
// keep their digits.
__device__ inline float capped(float s, const ScoreTerms& terms) {
  if (s != s) return s;
  const float negative = fmaxf(-kLargestScore, -fabsf(s));
  const float n = fmaxf(-200.f, rintf(negative * terms.cap_factor.high));  // 2^-200 is nothing beside 1
  const float f = fmaf(negative, terms.cap_factor.low, fmaf(negative, terms.cap_factor.high, -n));
  const float bounded = fmaxf(-1.f, fminf(f, 1.f)), power = power_of_two(n);
  const float e = fmaf(power, exp2_slope(bounded) * bounded, power - 1.f);
  return copysignf(terms.cap * -e / (e + 2.f), s);
}

__device__ inline float add_bias(float s, float bias, const ScoreTerms& terms) {
  const float z = fmaf(s, terms.scale.low, fmaf(s, terms.scale.high, bias));
  return z != z ? z : fmaxf(-kLargestScore, fminf(z, kLargestScore));
}

// The bias that an array has for a pair; -inf hides the key from the row.
__device__ inline float array_bias(const AttentionCall& call, int b, int h, int row, int key) {
  const std::int64_t at =
      b * call.bias_stride[0] + h * call.bias_stride[1] + row * call.bias_stride[2] + key * call.bias_stride[3];
  return read_float(call.bias, call.bias_dtype, at);
}

// The bias that the distance from query to key makes.
__device__ inline float distance_bias(const AttentionCall& call, int b, int h, int row, int key) {
  const int distance = key - ((call.q_offset ? call.q_offset[b] : call.kv_len - call.q_len) + row);
  float bias = 0;
  if (call.bias_table) {
    const int reach = call.bias_reach, clamped = distance < -reach ? -reach : distance > reach ? reach : distance;
    bias = call.bias_table[static_cast<std::int64_t>(h) * (2 * reach + 1) + clamped + reach];
  }
  return call.slopes ? bias - call.slopes[h] * fabsf(static_cast<float>(distance)) : bias;
}

__device__ inline bool hidden_by_bias(const AttentionCall& call, int b, int h, int row, int key) {
  return call.bias && array_bias(call, b, h, row, key) == kMinusInfinity;
}

// Of a pair that is seen.
__device__ inline float finished_score(const AttentionCall& call, const ScoreTerms& terms, float dot, int b, int h, int row,
                                       int key) {
  float s = terms.cap != 0 ? capped(dot, terms) : dot;
  if (!terms.biased) return s;
  return add_bias(s, (call.bias ? array_bias(call, b, h, row, key) : 0.f) + distance_bias(call, b, h, row, key), terms);
}

}  // namespace maskattn::cuda
