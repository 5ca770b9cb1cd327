// Rows of several sequences through a stack of Transformer layers on a device: maskattn/layer_stack.hpp's counterpart.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/decoder/elementwise.hpp"
#include "cuda/decoder/graph.hpp"
#include "cuda/decoder/matrix_product.hpp"
#include "cuda/runtime.hpp"
#include "maskattn/layer_stack.hpp"

namespace maskattn::cuda {

// What models on the current device share: a stream, and the products on it.
struct DecoderDevice {
  explicit DecoderDevice(const std::vector<std::string>& libraries) : id(current_device()), products(libraries, stream.get()) {}

  const int id;
  OwnStream stream;
  MatrixProducts products;
  std::mutex lock;
};

// Whoever works on a device has a turn there meanwhile: a stream on which a thread records a graph takes nothing from others.
struct Turn {
  explicit Turn(DecoderDevice& device) : hold(device.lock), current(device.id) {}

  std::lock_guard<std::mutex> hold;
  OnDevice current;
};

// Weights, in the device's memory, which whoever makes a stack keeps alive.
struct DeviceMap {
  const void* weight = nullptr;  // [outputs][inputs]; null: no map
  const float* bias = nullptr;   // or null
  int outputs = 0, inputs = 0;
};

struct DeviceAttention {
  DeviceMap in, out;  // in: queries, keys and values of self-attention; queries of cross-attention
  Norm q_norm, k_norm;
  int heads, kv_heads, head_dim;
  float scale, softcap;
};

struct DeviceLayer {
  DeviceAttention self;
  Norm self_norm, self_inner;
  std::optional<DeviceAttention> cross;
  Norm cross_norm;
  DeviceMap up, down;
  Function function;
  bool gated;
  Norm feed_forward_norm, feed_forward_inner;
};

struct DeviceEmbedding {
  const void* table;  // [tokens][table_width], of the stack's dtype; null: what comes in is no tokens
  int table_width;
  float scale;
  DeviceMap project;
  const float *segments, *positions;  // [..][width], or null
  int position_count, position_offset;
  Norm norm;
};

struct DeviceParts {
  std::vector<DeviceLayer> layers;
  int width;
  StackPlacement placement;
  Dtype dtype;              // of weights, and of queries, keys and values
  const float* bias_table;  // [heads][2 * reach + 1] by distance, or null
  int bias_reach;
  DeviceEmbedding embedding;
  Norm final_norm;
  DeviceMap final_map;

  int out_width() const { return final_map.weight ? final_map.outputs : width; }
};

// One call; arrays are the host's unless they are said to be the device's.
struct DeviceCall {
  int batch = 0;
  const int *counts = nullptr, *stored = nullptr;  // [batch]: rows of each sequence, and the positions before them
  const int* tokens = nullptr;                     // [rows]
  const int* segments = nullptr;                   // [rows], or null
  const float* x = nullptr;                        // [rows][width]: what the first layer reads, in place of tokens
  const float* raw = nullptr;                      // of the device: the same before positions are added

  struct Pool {  // of the device: keys and values [pages][kv_heads][page_size][head_dim]
    void *keys, *values;
  };
  std::vector<Pool> pools;  // of each layer; none: rows see the rows of their sequence
  std::vector<int> tables;  // [layers or 1][batch][per_sequence]
  int per_sequence = 0, page_size = 0;

  struct Spans {  // [batch][longest count][per_row] of keys that rows see
    const Span* data;
    int per_row;
  };
  std::vector<Spans> masks;
  std::vector<int> mask_of_layer;

  struct Memory {  // of the device: keys and values [sources][memory_page][kv_heads][head_dim]
    const void *keys, *values;
  };
  std::vector<Memory> memories;                                    // of each layer, or empty
  const int *memory_sources = nullptr, *memory_lengths = nullptr;  // [batch]
  int memory_page = 0;

  const float *cosines = nullptr, *sines = nullptr;  // [rows][rotary_half], or null
  int rotary_half = 0;
  std::vector<std::pair<int, float*>> taps;  // a layer, and where on the device what goes into it is put
  float* out = nullptr;                      // of the device: [rows][out_width]
};

class Arena;

class DeviceStack {
 public:
  DeviceStack(std::shared_ptr<DecoderDevice> device, DeviceParts parts);
  ~DeviceStack();

  const DeviceParts& parts() const { return parts_; }
  DecoderDevice& device() const { return *device_; }

  // Launches and returns. Steps (a token more of each sequence in a cache) are recorded when a shape comes for the second time,
  // and replayed from then on.
  void run(const DeviceCall& call);

  // function(map(x)) of rows x [rows][inputs] of the device.
  void apply(const DeviceMap& map, Function function, int rows, const float* x, float* out);

  // Keys and values that cross-attention of a layer reads: of rows x [rows][width] of the device, stored at positions[row] of
  // source sources[row] (the host's), in arrays like DeviceCall::Memory. `in` makes keys and values, `norm` is of keys.
  void project_memory(const DeviceMap& in, const Norm& norm, int heads, int head_dim, int rows, const float* x,
                      const int* sources, const int* positions, void* keys, void* values, int page);

  int graphs() const { return static_cast<int>(graphs_.size()); }

 private:
  struct Scratch;
  class Pass;
  using Key = std::vector<std::int64_t>;

  // map(x) of rows x [rows][inputs] of the device, by who has the turn.
  void multiply(const DeviceMap& map, int rows, const float* x, float* out);
  void replay(const Key& key, const Pass& pass);
  void grow(Arena& arena, std::size_t bytes);

  std::shared_ptr<DecoderDevice> device_;
  DeviceParts parts_;
  std::unique_ptr<Scratch> scratch_;
  std::map<Key, std::unique_ptr<Graph>> graphs_;  // null: seen once
};

}  // namespace maskattn::cuda
