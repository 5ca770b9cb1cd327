// Rows of several sequences through a stack of Transformer layers: the same functions, in the same order, that the layers in
// Python call one by one, so that a row has the same bits whichever of the two computes it, alone or among others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "maskattn/attention.hpp"
#include "maskattn/elementwise.hpp"
#include "maskattn/mask.hpp"
#include "maskattn/packed_linear.hpp"

namespace maskattn {

struct StackNorm {
  bool root;  // of the mean square alone (RMSNorm)
  const float* weight;
  const float* bias;  // or null
  float eps;
};

struct StackMap {
  PackedWeight weight;
  const float* bias;  // or null
};

struct StackAttention {
  StackMap in;  // queries, keys and values of self-attention; queries of cross-attention
  StackMap out;
  std::optional<StackMap> memory;           // keys and values of cross-attention
  std::optional<StackNorm> q_norm, k_norm;  // of each head
  std::int64_t heads, kv_heads, head_dim;
  double scale, softcap;
};

struct StackFeedForward {
  StackMap up;  // gated: the gate's outputs and then those that it is multiplied with
  StackMap down;
  std::optional<Activation> activation;  // none: the identity
  bool gated;
};

struct StackLayer {
  MaskRef mask;      // of self-attention; null: every row sees all keys of its sequence
  bool looks_ahead;  // the mask is the look-ahead mask, under which the last position sees all keys
  StackAttention self;
  StackNorm self_norm;
  std::optional<StackNorm> self_inner;
  std::optional<StackAttention> cross;
  std::optional<StackNorm> cross_norm;
  StackFeedForward feed_forward;
  StackNorm feed_forward_norm;
  std::optional<StackNorm> feed_forward_inner;
};

// What makes rows of tokens: those of a table times a scale, plus others of their positions.
struct StackEmbedding {
  PackedWeight table;
  float scale;
  const float* segment;    // added to every row, or null
  const float* positions;  // [position_rows][width], or null; position p has row p + offset, the last one if there is none
  std::int64_t position_rows, offset;
  std::optional<StackNorm> norm;
};

// What stands before the layers and behind them, for tokens in and states out.
struct StackEnds {
  StackEmbedding embedding;
  std::vector<StackNorm> norms;  // of the states
};

// Where norms stand around a residual branch: see maskattn/decoder/norms.py.
struct StackPlacement {
  bool before, after, parallel;
};

// Keys and values of a layer's sequences, float32 or bfloat16, in pages: position p of sequence b and head h is at page *
// stride[0]
// + h * stride[1] + p % page_size * stride[2] elements, page = table[b * per_sequence + p / page_size].
struct StackCache {
  Dtype dtype;
  void* keys;
  void* values;
  std::ptrdiff_t stride[3];
  const std::int32_t* table;
  std::int64_t per_sequence, page_size;
};

// Keys and values of the encoder's output.
struct StackMemory {
  Rows<const void> keys, values;
};

struct StackCall {
  std::int64_t batch = 0;
  const std::int64_t* counts = nullptr;  // [batch]: rows of each sequence, one sequence behind the other
  float* x = nullptr;                    // [rows][width], in: what the first layer reads; out: the states behind the last
  const std::int64_t* stored = nullptr;  // [batch]: positions that the caches hold; those of the rows are stored behind them
  std::vector<StackCache> caches;        // of each layer; none: rows see the rows of their sequence
  std::vector<MaskRef> masks;            // in place of the layers', or empty
  std::vector<StackMemory> memories;     // of each layer, or empty
  const std::int64_t* memory_lengths = nullptr;      // [batch], or null: memory_len
  std::int64_t memory_len = 0;                       // the longest
  const float *cosines = nullptr, *sines = nullptr;  // [rows][rotary_half] of the rows' positions, or null
  std::int64_t rotary_half = 0;
  int threads = 1;
};

class LayerStack {
 public:
  // `ends`: for step(). `attended`: what queries, keys, values and what comes of them are rounded to around attention, float32 or
  // bfloat16.
  LayerStack(std::vector<StackLayer> layers, std::int64_t width, StackPlacement placement, DistanceBias bias, Dtype attended,
             std::optional<StackEnds> ends);

  std::size_t layers() const { return layers_.size(); }
  std::int64_t width() const { return width_; }
  bool reads_memory() const;  // whether some layer has cross-attention
  bool has_ends() const { return ends_.has_value(); }
  std::int64_t vocab() const { return ends_->embedding.table.outputs(); }
  void run(const StackCall& call) const;
  // (width of the encoder's output, keys and values that all layers make of a row of it).
  std::pair<std::int64_t, std::int64_t> memory_sizes() const;
  // Keys and values of the layers with cross-attention from `rows` of the encoder's output x [rows][width], as `dtype`, float32
  // or bfloat16: out [layers][2][heads][rows][head_dim].
  void remember(const float* x, std::int64_t rows, Dtype dtype, void* out, int threads) const;
  // One token behind each sequence, tokens[batch]: call.x, which need not hold anything, becomes the normalised states.
  void step(const StackCall& call, const std::int64_t* tokens) const;

 private:
  std::vector<StackLayer> layers_;
  std::int64_t width_;
  StackPlacement placement_;
  DistanceBias bias_;
  Dtype attended_;
  std::optional<StackEnds> ends_;
};

}  // namespace maskattn
