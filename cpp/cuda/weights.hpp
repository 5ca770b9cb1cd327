// The (q_len, kv_len) matrix that attention() does not build, and what is made of it, in a device's memory.
#pragma once

#include "cuda/attention.hpp"

namespace maskattn::cuda {

struct WeightsCall {
  AttentionCall call;  // without v and out
  const int* rows;     // [row_count]: the queries that are asked about; null: all, in order
  int row_count;
  void* out;      // [batch][q_heads][row_count][kv_len], contiguous, of the dtype of q
  float* scores;  // the same in float32, for attention_weights: `out` itself where that is float32
};

// The scaled, capped and biased scores of the keys that a row sees; -inf of others.
void attention_scores(const WeightsCall& weights, Stream stream);

// The softmax of attention(): 0 for keys that a row does not see.
void attention_weights(const WeightsCall& weights, Stream stream);

// The keys of the `count` largest weights of each row, largest first and earlier keys first among equals, and the weights:
// [batch][q_heads][row_count][count] both; -1 and 0 where a row sees fewer. `out` and `scores` of the call are not used.
struct LargestCall {
  WeightsCall of;
  int count;
  std::int64_t* keys;
  float* weights;
  std::uint32_t* scratch;  // largest_scratch_bytes()
};
std::size_t largest_scratch_bytes(const WeightsCall& weights);
void largest_weights(const LargestCall& largest, Stream stream);

// The weights that each key gets, summed over all queries in a fixed order, in double: [batch][q_heads][kv_len]. The scratch is
// two floats for each row of each head.
void weights_per_key(const AttentionCall& call, float* scratch, float* sums, Stream stream);

}  // namespace maskattn::cuda
