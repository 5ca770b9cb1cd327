// One pass of rows through a DeviceStack: what it reads, where it works, and what it launches.
#pragma once

#include <utility>
#include <vector>

#include "cuda/attention.hpp"
#include "cuda/decoder/layer_stack.hpp"

namespace maskattn::cuda {

// Everything that pointers lead to is on the device; a pass can be launched again as long as that is there.
class LayerPass {
 public:
  // A mask's rows, whose tiles are lowered before the layers run.
  struct Mask {
    PlanView plan;
    TileEntry* tiles;
    int* tile_counts;
  };
  struct Inputs {
    const int *tokens, *segments, *sequences, *indices, *positions, *padded_rows, *offsets, *tables, *memory_sources;
    const float *x, *raw, *cosines, *sines;
  };
  // Of `dtype` but for the floats.
  struct Work {
    float *x, *joined, *branches[3], *out;
    void *narrow, *q, *keys, *values, *attended, *packed, *attention;
  };

  const DeviceParts* parts;
  MatrixProducts* products;
  Stream stream;
  int batch, rows, q_len, kv_len, memory_len;
  std::vector<DeviceCall::Pool> pools;
  int table_step, per_sequence, page_size;  // table_step: from layer to layer
  std::vector<Mask> masks;
  std::vector<int> mask_of_layer;
  std::vector<DeviceCall::Memory> memories;
  int memory_page;
  Mask memory_mask;
  int rotary_half;
  std::vector<std::pair<int, float*>> taps;
  Inputs in;
  Work work;

  void launch_all() const;
  std::size_t attention_bytes() const;  // the most that a layer's attention needs to work in

  // Of the feed-forward part, which is wide, at a time.
  static constexpr int kInnerRows = 4096;

 private:
  void embed_rows() const;
  void run_layer(std::size_t index) const;
  void finish() const;
  void attend(std::size_t index, const void* from, float* to, bool added) const;
  void look_at_memory(std::size_t index, const void* from, float* to, bool added) const;
  void feed_forward(const DeviceLayer& layer, const void* from, float* to, bool added) const;
  void project(const DeviceAttention& a, const AttentionCall& call, float* to, bool added) const;
  AttentionCall self_call(std::size_t index) const;
  AttentionCall memory_call(std::size_t index) const;
  AttentionCall call_of(const DeviceAttention& a, const Mask& mask, int keys) const;
  void multiply(const DeviceMap& map, int count, const void* x, float* out, bool added) const;
  const void* narrowed(const float* x, int width) const;
  HeadsTarget rows_of(void* data, int heads, int head_dim) const;
  HeadsTarget pool_of(void* data, std::size_t index, int heads, int head_dim) const;
};

}  // namespace maskattn::cuda
