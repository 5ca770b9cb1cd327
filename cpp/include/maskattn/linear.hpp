// The matrix product of a decoder: rows of activations times a weight matrix as checkpoints store it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

// out[r][o] = x[r] . weight[o] + bias[o] for `rows` x `outputs`; rows of x, weight and out are `..._stride` elements apart, bias
// may be null. The bits of a row of out depend on that row of x only, not on how many rows share the call.
template <class T>
struct Linear {
  std::int64_t rows, inputs, outputs;
  const T* x;
  std::ptrdiff_t x_stride;
  const T* weight;
  std::ptrdiff_t weight_stride;
  const T* bias;
  T* out;
  std::ptrdiff_t out_stride;
  int threads;
};
template <class T>
void linear(const Linear<T>& call);

}  // namespace maskattn
