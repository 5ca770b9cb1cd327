// Attention without matrix units, for every call of the contract: a warp for each query row.
#include "cuda/plain_row.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kWarps = 4;

MASKATTN_HD int blocks_of_head(int q_len) { return q_len / kWarps + (q_len % kWarps != 0); }

template <class T, class Stored>
__global__ void __launch_bounds__(32 * kWarps, 8) attention_plain_kernel(AttentionCall call, ScoreTerms terms) {
  MASKATTN_SHARED PlainRowMemory memory[kWarps];
  MASKATTN_SHARED PlainRow rows[kWarps];  // every thread's own would take registers that there are not
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int of_head = blocks_of_head(call.q_len), heads = static_cast<int>(blockIdx.x) / of_head;  // before this one
  const int query = static_cast<int>(blockIdx.x) % of_head * kWarps + warp, head = heads % call.q_heads;
  const int b = heads / call.q_heads;
  if (query >= queries_of(call, b)) return;
  if (threadIdx.x % 32 == 0) rows[warp] = {b, head, head / (call.q_heads / call.kv_heads), query};
  __syncwarp();
  attend_row<T, Stored>(call, terms, rows[warp], memory[warp]);
}

}  // namespace

void attention_plain(const AttentionCall& call, Stream stream) {
  const std::int64_t blocks = std::int64_t{call.batch} * call.q_heads * blocks_of_head(call.q_len);
  with_types(call, [&](auto number, auto stored) {
    launch(attention_plain_kernel<decltype(number), decltype(stored)>, blocks, dim3(32 * kWarps), 0, stream, call,
           score_terms(call));
  });
}

}  // namespace maskattn::cuda
