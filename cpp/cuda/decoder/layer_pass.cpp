#include "cuda/decoder/layer_pass.hpp"

#include <algorithm>

#include "cuda/plan_build.hpp"

namespace maskattn::cuda {

void LayerPass::launch_all() const {
  embed_rows();
  for (const Mask& mask : masks) list_tiles(mask.plan, mask.tiles, mask.tile_counts, stream);
  if (!memories.empty()) list_tiles(memory_mask.plan, memory_mask.tiles, memory_mask.tile_counts, stream);
  for (std::size_t i = 0; i < parts->layers.size(); ++i) run_layer(i);
  finish();
}

std::size_t LayerPass::attention_bytes() const {
  std::size_t most = 0;
  for (std::size_t i = 0; i < parts->layers.size(); ++i) {
    most = std::max(most, workspace_bytes(self_call(i)));
    if (parts->layers[i].cross) most = std::max(most, workspace_bytes(memory_call(i)));
  }
  return most;
}

void LayerPass::embed_rows() const {
  const DeviceEmbedding& e = parts->embedding;
  const std::size_t bytes = static_cast<std::size_t>(rows) * static_cast<std::size_t>(parts->width) * sizeof(float);
  if (in.x) return copy(work.x, in.x, bytes, stream);
  if (in.raw) {
    copy(work.x, in.raw, bytes, stream);
  } else {
    float* rows_of_table = e.project.weight ? work.joined : work.x;
    embed(rows, e.table_width, in.tokens, e.table, parts->dtype, e.scale, rows_of_table, stream);
    if (e.project.weight) multiply(e.project, rows, narrowed(rows_of_table, e.table_width), work.x, false);
  }
  add_rows(rows, parts->width, {e.segments, in.segments, e.positions, in.positions, e.position_count, e.position_offset}, work.x,
           stream);
  if (e.norm) normalize(e.norm, rows, parts->width, work.x, work.x, Dtype::float32, stream);
}

void LayerPass::run_layer(std::size_t index) const {
  const DeviceLayer& layer = parts->layers[index];
  const StackPlacement place = parts->placement;
  const int width = parts->width;
  const std::int64_t elements = std::int64_t{rows} * width;
  for (const auto& [tapped, to] : taps)
    if (tapped == static_cast<int>(index)) copy(to, work.x, static_cast<std::size_t>(elements) * sizeof(float), stream);
  int branches = 0;
  // One residual branch: the norm, what it does, the inner norm, the sum; side by side, sums come at the end.
  const auto branch = [&](const Norm& norm, const Norm& inner, const auto& body) {
    const void* from = work.x;
    if (place.before) {
      normalize(norm, rows, width, work.x, work.narrow, parts->dtype, stream);
      from = work.narrow;
    } else {
      from = narrowed(work.x, width);
    }
    const bool added = !place.parallel && !inner;
    float* to = added ? work.x : work.branches[place.parallel ? branches++ : 0];
    body(from, to, added);
    if (inner) normalize(inner, rows, width, to, to, Dtype::float32, stream);
    if (place.parallel) return;
    if (!added) add(elements, to, work.x, stream);
    if (place.after) normalize(norm, rows, width, work.x, work.x, Dtype::float32, stream);
  };
  branch(layer.self_norm, layer.self_inner, [&](const void* from, float* to, bool added) { attend(index, from, to, added); });
  if (layer.cross)
    branch(layer.cross_norm, {}, [&](const void* from, float* to, bool added) { look_at_memory(index, from, to, added); });
  branch(layer.feed_forward_norm, layer.feed_forward_inner,
         [&](const void* from, float* to, bool added) { feed_forward(layer, from, to, added); });
  if (!place.parallel) return;
  // Summed from the last branch, and the residual stream at the end.
  for (int b = branches - 2; b >= 0; --b) add(elements, work.branches[b], work.branches[branches - 1], stream);
  add(elements, work.branches[branches - 1], work.x, stream);
}

void LayerPass::finish() const {
  const bool mapped = parts->final_map.weight;
  float* states = mapped ? work.x : work.out;
  if (parts->final_norm)
    normalize(parts->final_norm, rows, parts->width, work.x, states, Dtype::float32, stream);
  else if (!mapped)
    copy(states, work.x, static_cast<std::size_t>(rows) * static_cast<std::size_t>(parts->width) * sizeof(float), stream);
  if (mapped) multiply(parts->final_map, rows, narrowed(work.x, parts->width), work.out, false);
}

void LayerPass::attend(std::size_t index, const void* from, float* to, bool added) const {
  const DeviceAttention& a = parts->layers[index].self;
  multiply(a.in, rows, from, work.joined, false);
  HeadsCall heads{.rows = rows,
                  .q_heads = a.heads,
                  .kv_heads = a.kv_heads,
                  .head_dim = a.head_dim,
                  .joined = work.joined,
                  .q_norm = a.q_norm,
                  .k_norm = a.k_norm,
                  .cosines = in.cosines,
                  .sines = in.sines,
                  .rotary_half = rotary_half,
                  .sequences = in.sequences,
                  .indices = in.indices,
                  .positions = in.positions,
                  .q = rows_of(work.q, a.heads, a.head_dim),
                  .keys = rows_of(work.keys, a.kv_heads, a.head_dim),
                  .values = rows_of(work.values, a.kv_heads, a.head_dim)};
  if (!pools.empty()) {
    heads.keys = pool_of(pools[index].keys, index, a.kv_heads, a.head_dim);
    heads.values = pool_of(pools[index].values, index, a.kv_heads, a.head_dim);
  }
  store_heads(heads, parts->dtype, stream);
  project(a, self_call(index), to, added);
}

void LayerPass::look_at_memory(std::size_t index, const void* from, float* to, bool added) const {
  const DeviceAttention& a = *parts->layers[index].cross;
  multiply(a.in, rows, from, work.joined, false);
  store_heads({.rows = rows,
               .q_heads = a.heads,
               .kv_heads = 0,
               .head_dim = a.head_dim,
               .joined = work.joined,
               .q_norm = a.q_norm,
               .k_norm = {},
               .sequences = in.sequences,
               .indices = in.indices,
               .positions = in.positions,
               .q = rows_of(work.q, a.heads, a.head_dim),
               .keys = {},
               .values = {}},
              parts->dtype, stream);
  project(a, memory_call(index), to, added);
}

void LayerPass::feed_forward(const DeviceLayer& layer, const void* from, float* to, bool added) const {
  const std::size_t bytes = size_of(parts->dtype);
  const int inner = layer.down.inputs;
  for (int first = 0; first < rows; first += kInnerRows) {
    const int count = std::min(kInnerRows, rows - first);
    const auto at = [&](int width) { return static_cast<std::size_t>(first) * static_cast<std::size_t>(width); };
    multiply(layer.up, count, static_cast<const char*>(from) + at(parts->width) * bytes, work.joined, false);
    activate(layer.function, layer.gated, count, inner, work.joined, work.packed, parts->dtype, stream);
    multiply(layer.down, count, work.packed, to + at(parts->width), added);
  }
}

// Attention, and its map back to the width.
void LayerPass::project(const DeviceAttention& a, const AttentionCall& call, float* to, bool added) const {
  attention(call, work.attention, stream);
  const void* attended = work.attended;
  if (rows != batch * q_len) {
    gather(rows, a.heads * a.head_dim, static_cast<int>(size_of(parts->dtype)), work.attended, in.padded_rows, work.packed,
           stream);
    attended = work.packed;
  }
  multiply(a.out, rows, attended, to, added);
}

AttentionCall LayerPass::self_call(std::size_t index) const {
  const DeviceAttention& a = parts->layers[index].self;
  AttentionCall call = call_of(a, masks[static_cast<std::size_t>(mask_of_layer[index])], kv_len);
  const std::int64_t dim = a.head_dim;
  if (pools.empty()) {
    call.k = {work.keys, parts->dtype, {q_len * a.kv_heads * dim, dim, a.kv_heads * dim}};
    call.v = {work.values, parts->dtype, {q_len * a.kv_heads * dim, dim, a.kv_heads * dim}};
  } else {
    call.k = {pools[index].keys, parts->dtype, {a.kv_heads * page_size * dim, page_size * dim, dim}};
    call.v = {pools[index].values, parts->dtype, {a.kv_heads * page_size * dim, page_size * dim, dim}};
    call.page_table = in.tables + static_cast<std::ptrdiff_t>(index) * table_step;
    call.pages_per_sequence = per_sequence;
    call.page_size = page_size;
  }
  call.bias_table = parts->bias_table;
  call.bias_reach = parts->bias_reach;
  call.q_offset = in.offsets;
  return call;
}

AttentionCall LayerPass::memory_call(std::size_t index) const {
  const DeviceAttention& a = *parts->layers[index].cross;
  AttentionCall call = call_of(a, memory_mask, memory_len);
  const std::int64_t dim = a.head_dim, row = a.kv_heads * dim;
  call.k = {memories[index].keys, parts->dtype, {memory_page * row, dim, row}};
  call.v = {memories[index].values, parts->dtype, {memory_page * row, dim, row}};
  call.page_table = in.memory_sources;
  call.pages_per_sequence = 1;
  call.page_size = memory_page;
  call.q_offset = in.offsets;
  return call;
}

AttentionCall LayerPass::call_of(const DeviceAttention& a, const Mask& mask, int keys) const {
  const std::int64_t dim = a.head_dim, row = a.heads * dim;
  AttentionCall call{};
  call.batch = batch;
  call.q_heads = a.heads;
  call.kv_heads = a.kv_heads;
  call.q_len = q_len;
  call.kv_len = keys;
  call.head_dim = call.v_head_dim = a.head_dim;
  call.dtype = parts->dtype;
  call.q = {work.q, parts->dtype, {q_len * row, dim, row}};
  call.out = {work.attended, parts->dtype, {q_len * row, dim, row}};
  call.plan = mask.plan;
  call.scale = a.scale;
  call.softcap = a.softcap;
  call.precision = Precision::highest;
  return call;
}

void LayerPass::multiply(const DeviceMap& map, int count, const void* x, float* out, bool added) const {
  products->multiply({.rows = count,
                      .outputs = map.outputs,
                      .inputs = map.inputs,
                      .dtype = parts->dtype,
                      .x = x,
                      .weight = map.weight,
                      .bias = map.bias,
                      .out = out,
                      .added = added});
}

// Rows as products read them.
const void* LayerPass::narrowed(const float* x, int width) const {
  if (parts->dtype == Dtype::float32) return x;
  convert(std::int64_t{rows} * width, x, work.narrow, parts->dtype, stream);
  return work.narrow;
}

// Heads side by side in rows, the rows of a sequence `q_len` apart from the next one's.
HeadsTarget LayerPass::rows_of(void* data, int heads, int head_dim) const {
  const std::int64_t dim = head_dim;
  return {data, {q_len * heads * dim, dim, heads * dim}};
}

HeadsTarget LayerPass::pool_of(void* data, std::size_t index, int heads, int head_dim) const {
  const std::int64_t dim = head_dim;
  return {data,
          {heads * page_size * dim, page_size * dim, dim},
          in.tables + static_cast<std::ptrdiff_t>(index) * table_step,
          per_sequence,
          page_size};
}

}  // namespace maskattn::cuda
