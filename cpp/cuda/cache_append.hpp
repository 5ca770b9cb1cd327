// Tokens behind those that the pages of a cache hold, in a device's memory.
#pragma once

#include <cstdint>

#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

namespace maskattn::cuda {

struct AppendCall {
  int batch, heads, count, dim;  // at most `count` tokens of each sequence
  const void* from;              // element (b, h, i, d) at the sum of index * stride
  Dtype from_dtype;
  std::int64_t stride[4];
  void* pool;     // [pages][heads][page_size][dim]
  Dtype dtype;    // also int8,
  float* scales;  // and then [pages][heads][page_size]
  int page_size, pages_per_sequence;
  const int* table;                       // [batch][pages_per_sequence]
  const std::int64_t *lengths, *appends;  // [batch]: tokens that a sequence has, and gets
};

// Token i of sequence b goes to position lengths[b] + i, rounded to the pool's dtype; tokens at or past appends[b] are not read.
// As int8 it has a scale for each head, max(abs) / 127, which is NaN where the token is not finite.
void append_tokens(const AppendCall& call, Stream stream);

}  // namespace maskattn::cuda
