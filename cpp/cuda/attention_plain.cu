// Attention without matrix units, for every call of the contract: a warp for each query row.
#include "cuda/plain_row.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kWarps = 4;

template <class T>
__global__ void __launch_bounds__(32 * kWarps) attention_plain_kernel(AttentionCall call, ScoreTerms terms) {
  MASKATTN_SHARED PlainRowMemory memory[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int query = static_cast<int>(blockIdx.x) * kWarps + warp, head = static_cast<int>(blockIdx.y);
  if (query >= queries_of(call, static_cast<int>(blockIdx.z))) return;
  attend_row<T>(call, terms, {static_cast<int>(blockIdx.z), head, head / (call.q_heads / call.kv_heads), query}, memory[warp]);
}

}  // namespace

void attention_plain(const AttentionCall& call, Stream stream) {
  const dim3 grid((call.q_len + kWarps - 1) / kWarps, call.q_heads, call.batch);
  with_type(call.dtype, [&](auto number) {
    launch(attention_plain_kernel<decltype(number)>, grid, dim3(32 * kWarps), 0, stream, call, score_terms(call));
  });
}

}  // namespace maskattn::cuda
