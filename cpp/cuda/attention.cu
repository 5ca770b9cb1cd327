// Which kernel does a call.
#include "cuda/attention.hpp"

#include "cuda/runtime.hpp"

namespace maskattn::cuda {

std::size_t workspace_bytes(const AttentionCall& call) { return decode_can(call) ? decode_workspace_bytes(call) : 0; }

void attention(const AttentionCall& call, void* workspace, Stream stream) {
  if (call.batch == 0 || call.q_heads == 0 || call.q_len == 0) return;
  const int compute_capability = device().compute_capability;
  if (decode_can(call))
    attention_decode(call, workspace, stream);
  else if (wgmma_can(call, compute_capability))
    attention_wgmma(call, stream);
  else if (mma_can(call, compute_capability))
    attention_mma(call, stream);
  else
    attention_plain(call, stream);
}

}  // namespace maskattn::cuda
