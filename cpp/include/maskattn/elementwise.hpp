// What the layers of a Transformer do between products, in float32. The bits of a row depend on that row only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

// Rows of `width` elements, `x_stride` and `out_stride` elements apart; out may be x.
struct RowsOf {
  std::int64_t rows;
  std::int64_t width;
  const float* x;
  std::ptrdiff_t x_stride;
  float* out;
  std::ptrdiff_t out_stride;
  int threads;
};

// (x - mean) / sqrt(variance + eps) * weight + bias (arXiv:1607.06450); bias may be null.
void layer_norm(const RowsOf& call, const float* weight, const float* bias, float eps);
// x / sqrt(mean of squares + eps) * weight (arXiv:1910.07467).
void rms_norm(const RowsOf& call, const float* weight, float eps);

enum class Activation : int { relu, silu, gelu, gelu_tanh, quick_gelu, tanh };
// out = function(x); gated: x has 2 * width elements a row, and out = function(first half) * second half.
void activate(const RowsOf& call, Activation function, bool gated);

}  // namespace maskattn
