// Results over disjoint sets of keys, joined, in a device's memory.
#pragma once

#include <cstdint>

#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

namespace maskattn::cuda {

inline constexpr int kMostMergeAxes = 8;

// What attention has given for one set: float32, float16 or bfloat16; strides are in elements, of `out` the last one is a row's.
struct AttentionState {
  const void* out;
  const void* lse;
  Dtype out_dtype, lse_dtype;
  std::int64_t out_stride[kMostMergeAxes], lse_stride[kMostMergeAxes];
};

struct MergeCall {
  AttentionState a, b;
  int axes;  // of `out`; rows are the last
  std::int64_t extent[kMostMergeAxes];
  void* out;  // both in C order, of the dtypes of a
  void* lse;
};

// out = (e^a.lse a.out + e^b.lse b.out) / (e^a.lse + e^b.lse), lse the denominator's logarithm (arXiv:2501.01005).
// A part of no weight is not read; two of them are zeros and -inf.
void merge_states(const MergeCall& call, Stream stream);

}  // namespace maskattn::cuda
