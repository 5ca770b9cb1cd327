// One token through a stack of decoder layers: the same functions, in the same order, that prefill calls layer by layer, so that
// a decoded row has the bits of a row of a prefill.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "maskattn/attention.hpp"
#include "maskattn/elementwise.hpp"
#include "maskattn/mask.hpp"
#include "maskattn/packed_linear.hpp"

namespace maskattn {

struct StepNorm {
  bool root;  // of the mean square alone (RMSNorm)
  const float* weight;
  const float* bias;  // or null
  float eps;
};

struct StepMap {
  PackedWeight weight;
  const float* bias;  // or null
};

struct StepAttention {
  StepMap in;  // queries, keys and values of self-attention; queries of cross-attention
  StepMap out;
  std::optional<StepNorm> q_norm, k_norm;  // of each head
  std::int64_t heads, kv_heads, head_dim;
  double scale, softcap;
};

struct StepFeedForward {
  StepMap up;  // gated: the gate's outputs and then those that it is multiplied with
  StepMap down;
  std::optional<Activation> activation;  // none: the identity
  bool gated;
};

struct StepLayer {
  MaskRef mask;  // of self-attention; null: the new token sees all that is stored
  StepAttention self;
  StepNorm self_norm;
  std::optional<StepNorm> self_inner;
  std::optional<StepAttention> cross;
  std::optional<StepNorm> cross_norm;
  StepFeedForward feed_forward;
  StepNorm feed_forward_norm;
  std::optional<StepNorm> feed_forward_inner;
};

// Where norms stand around a residual branch: see maskattn/decoder/norms.py.
struct StepPlacement {
  bool before, after, parallel;
};

// Keys and values of a layer's sequences in float32, one page each: row p of head h is at page * stride[0] + h * stride[1] + p *
// stride[2] elements, of page table[b].
struct StepCache {
  float* keys;
  float* values;
  std::ptrdiff_t stride[3];
  const std::int32_t* table;
  std::int64_t page_size;
};

// Keys and values of the encoder's output.
struct StepMemory {
  Rows<const void> keys, values;
  std::int64_t kv_len;
};

struct StepCall {
  std::int64_t batch = 0;
  float* x = nullptr;                     // [batch][width], in: the embeddings of the tokens; out: the states behind the layers
  const std::int64_t* lengths = nullptr;  // [batch]: tokens that the caches hold; the new ones are stored behind them
  std::int64_t longest = 0;
  std::vector<StepCache> caches;                     // of each layer
  std::vector<StepMemory> memories;                  // likewise, or empty
  const std::int64_t* memory_lengths = nullptr;      // [batch], or null
  const float *cosines = nullptr, *sines = nullptr;  // [batch or 1][rotary_half] of the tokens' positions, or null
  std::int64_t rotary_half = 0, rotary_stride = 0;   // stride 0: the same for all sequences
  int threads = 1;
};

class DecoderStep {
 public:
  DecoderStep(std::vector<StepLayer> layers, std::int64_t width, StepPlacement placement, DistanceBias bias);

  std::size_t layers() const { return layers_.size(); }
  std::int64_t width() const { return width_; }
  void run(const StepCall& call) const;

 private:
  std::vector<StepLayer> layers_;
  std::int64_t width_;
  StepPlacement placement_;
  DistanceBias bias_;
};

}  // namespace maskattn
