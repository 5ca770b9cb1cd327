// The (q_len, kv_len) matrix that attention() does not build, in a device's memory.
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

}  // namespace maskattn::cuda
