#include "cuda/decoder/layer_stack.hpp"

#include <algorithm>
#include <bit>

#include "cuda/decoder/layer_pass.hpp"
#include "cuda/decoder/scratch.hpp"

namespace maskattn::cuda {
namespace {

constexpr std::size_t kMostGraphs = 64;
constexpr int kLeastKeys = 128;  // that a recorded step reaches

// What rows are, one sequence behind the other.
struct RowNames {
  std::vector<int> sequences, indices, positions, padded_rows;

  RowNames(const DeviceCall& call, int q_len) {
    for (int b = 0; b < call.batch; ++b)
      for (int i = 0; i < call.counts[b]; ++i) {
        sequences.push_back(b);
        indices.push_back(i);
        positions.push_back(call.stored[b] + i);
        padded_rows.push_back(b * q_len + i);
      }
  }
};

}  // namespace

struct DeviceStack::Scratch {
  Arena inputs, work, attention;
};

// A call on its way to a LayerPass: its arrays copied, its memory laid out.
class DeviceStack::Pass {
 public:
  Pass(DeviceStack& stack, const DeviceCall& call) : stack_(stack), call_(call) {
    LayerPass& p = pass_;
    p.parts = &stack.parts_;
    p.products = &stack.device_->products;
    p.stream = stack.device_->stream.get();
    p.batch = call.batch;
    p.rows = p.q_len = p.kv_len = p.memory_len = 0;
    for (int b = 0; b < call.batch; ++b) {
      p.rows += call.counts[b];
      p.q_len = std::max(p.q_len, call.counts[b]);
      p.kv_len = std::max(p.kv_len, call.stored[b] + call.counts[b]);
    }
    // A replayed step reaches as far as any of its sequences may grow until another one is recorded.
    if (is_step()) p.kv_len = std::min(call.per_sequence * call.page_size, std::max(kLeastKeys, ceil_power(p.kv_len)));
    p.pools = call.pools;
    p.per_sequence = call.per_sequence;
    p.page_size = call.page_size;
    const auto table = static_cast<std::size_t>(call.batch) * static_cast<std::size_t>(call.per_sequence);
    p.table_step = call.tables.size() > table ? static_cast<int>(table) : 0;
    p.mask_of_layer = call.mask_of_layer;
    p.memories = call.memories;
    p.memory_page = p.memory_len = call.memory_page;
    p.rotary_half = call.rotary_half;
    p.taps = call.taps;
    send_inputs();
    lay_out();
  }

  const LayerPass& layers() const { return pass_; }
  bool is_step() const {
    return pass_.q_len == 1 && pass_.rows == call_.batch && !call_.pools.empty() && call_.tokens && call_.taps.empty();
  }

  // What a recorded step depends on; lengths, tokens and tables are read when it runs.
  Key key() const {
    const auto address = [](const void* p) { return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(p)); };
    Key key{pass_.batch,      pass_.kv_len,      pass_.per_sequence, pass_.page_size,
            pass_.table_step, pass_.rotary_half, pass_.memory_page};
    key.push_back(call_.segments != nullptr);
    for (const auto& mask : call_.masks) key.push_back(mask.per_row);
    for (const auto& pool : pass_.pools) key.insert(key.end(), {address(pool.keys), address(pool.values)});
    for (const auto& memory : pass_.memories) key.insert(key.end(), {address(memory.keys), address(memory.values)});
    return key;
  }

 private:
  static int ceil_power(int length) { return static_cast<int>(std::bit_ceil(static_cast<unsigned>(length))); }

  void send_inputs() {
    const auto batch = static_cast<std::size_t>(call_.batch), rows = static_cast<std::size_t>(pass_.rows);
    const RowNames names(call_, pass_.q_len);
    Parcel parcel;
    const auto optional = [&](const auto* data, std::size_t count) { return parcel.add(data, data ? count : 0); };
    const std::size_t tokens = optional(call_.tokens, rows), segments = optional(call_.segments, rows);
    const std::size_t x = optional(call_.x, rows * static_cast<std::size_t>(stack_.parts_.width));
    const std::size_t turns = rows * static_cast<std::size_t>(call_.rotary_half);
    const std::size_t cosines = optional(call_.cosines, turns), sines = optional(call_.sines, turns);
    const std::size_t sequences = parcel.add(names.sequences), indices = parcel.add(names.indices);
    const std::size_t positions = parcel.add(names.positions), padded_rows = parcel.add(names.padded_rows);
    const std::size_t offsets = parcel.add(call_.stored, batch), tables = parcel.add(call_.tables);
    const std::size_t sources = optional(call_.memory_sources, batch);
    std::vector<std::size_t> spans;
    for (const auto& mask : call_.masks)
      spans.push_back(parcel.add(mask.data, batch * static_cast<std::size_t>(pass_.q_len * mask.per_row)));
    const std::vector<Span> of_memory = memory_spans();
    const std::size_t memory = parcel.add(of_memory);

    Arena& arena = stack_.scratch_->inputs;
    stack_.grow(arena, parcel.bytes());
    send(arena.data(), parcel.packed().get(), parcel.bytes(), pass_.stream);
    const auto at = [&]<class T>(const T*, std::size_t offset) { return reinterpret_cast<const T*>(arena.data() + offset); };
    const auto number = [&](std::size_t offset) { return at(static_cast<const int*>(nullptr), offset); };
    const auto real = [&](const float* given, std::size_t offset) { return given ? at(given, offset) : nullptr; };
    pass_.in = {number(tokens),
                call_.segments ? number(segments) : nullptr,
                number(sequences),
                number(indices),
                number(positions),
                number(padded_rows),
                number(offsets),
                number(tables),
                number(sources),
                real(call_.x, x),
                call_.raw,
                real(call_.cosines, cosines),
                real(call_.sines, sines)};
    for (std::size_t i = 0; i < spans.size(); ++i)
      pass_.masks.push_back(mask_of(at(static_cast<const Span*>(nullptr), spans[i]), call_.masks[i].per_row, pass_.kv_len));
    pass_.memory_mask = mask_of(at(static_cast<const Span*>(nullptr), memory), 1, pass_.memory_len);
  }

  // All rows of a sequence see all keys of its source.
  std::vector<Span> memory_spans() const {
    std::vector<Span> spans;
    if (call_.memories.empty()) return spans;
    for (int b = 0; b < call_.batch; ++b)
      for (int i = 0; i < pass_.q_len; ++i) spans.push_back({0, i < call_.counts[b] ? call_.memory_lengths[b] : 0});
    return spans;
  }

  LayerPass::Mask mask_of(const Span* spans, int per_row, int keys) const {
    PlanView plan{};
    plan.batch = pass_.batch;
    plan.heads = 1;
    plan.q_len = pass_.q_len;
    plan.kv_len = keys;
    plan.q_tiles = (pass_.q_len + kTile - 1) / kTile;
    plan.kv_tiles = (keys + kTile - 1) / kTile;
    plan.spans = spans;
    plan.spans_per_row = per_row;
    return {plan, nullptr, nullptr};
  }

  void lay_out() {
    Pieces counting(nullptr);
    place(counting);
    Arena& arena = stack_.scratch_->work;
    stack_.grow(arena, counting.used());
    Pieces pieces(arena.data());
    place(pieces);
    const std::size_t bytes = pass_.attention_bytes();
    stack_.grow(stack_.scratch_->attention, bytes);
    pass_.work.attention = stack_.scratch_->attention.data();
  }

  void place(Pieces& pieces) {
    const DeviceParts& parts = stack_.parts_;
    const std::size_t bytes = size_of(parts.dtype);
    const int rows = pass_.rows, padded = pass_.batch * pass_.q_len, inner_rows = std::min(rows, LayerPass::kInnerRows);
    std::size_t joined = product(rows, parts.embedding.table_width, sizeof(float)), heads = 0, kv_heads = 0;
    std::size_t packed = 0, narrow = static_cast<std::size_t>(std::max(parts.width, parts.embedding.table_width));
    int branches = parts.placement.parallel ? 2 : 0;
    const auto attention = [&](const DeviceAttention& a) {
      joined = std::max(joined, product(rows, a.in.outputs, sizeof(float)));
      heads = std::max(heads, static_cast<std::size_t>(a.heads) * static_cast<std::size_t>(a.head_dim));
      kv_heads = std::max(kv_heads, static_cast<std::size_t>(a.kv_heads) * static_cast<std::size_t>(a.head_dim));
    };
    for (const DeviceLayer& layer : parts.layers) {
      attention(layer.self);
      if (layer.cross) attention(*layer.cross);
      if (layer.cross && parts.placement.parallel) branches = 3;
      if (layer.self_inner || layer.feed_forward_inner) branches = std::max(branches, 1);
      joined = std::max(joined, product(inner_rows, layer.up.outputs, sizeof(float)));
      packed = std::max(packed, product(inner_rows, layer.down.inputs, bytes));
    }
    LayerPass::Work& work = pass_.work;
    work.x = pieces.take<float>(product(rows, parts.width, sizeof(float)));
    work.out = pieces.take<float>(product(rows, parts.out_width(), sizeof(float)));
    for (int b = 0; b < branches; ++b) work.branches[b] = pieces.take<float>(product(rows, parts.width, sizeof(float)));
    work.joined = pieces.take<float>(joined);
    work.narrow = pieces.take(static_cast<std::size_t>(rows) * narrow * bytes);
    work.packed = pieces.take(std::max(packed, static_cast<std::size_t>(rows) * heads * bytes));
    work.q = pieces.take(static_cast<std::size_t>(padded) * heads * bytes);
    work.attended = pieces.take(static_cast<std::size_t>(padded) * heads * bytes);
    const std::size_t own = pass_.pools.empty() ? static_cast<std::size_t>(padded) * kv_heads * bytes : 0;
    work.keys = pieces.take(own);
    work.values = pieces.take(own);
    for (LayerPass::Mask& mask : pass_.masks) place_tiles(pieces, mask);
    place_tiles(pieces, pass_.memory_mask);
  }

  static void place_tiles(Pieces& pieces, LayerPass::Mask& mask) {
    const PlanView& plan = mask.plan;
    const auto lists = static_cast<std::int64_t>(plan.batch) * plan.q_tiles;
    mask.tiles = pieces.take<TileEntry>(product(lists, plan.kv_tiles, sizeof(TileEntry)));
    mask.tile_counts = pieces.take<int>(product(lists, 1, sizeof(int)));
    mask.plan.tiles = mask.tiles;
    mask.plan.tile_counts = mask.tile_counts;
  }

  DeviceStack& stack_;
  const DeviceCall& call_;
  LayerPass pass_{};
};

DeviceStack::DeviceStack(std::shared_ptr<DecoderDevice> device, DeviceParts parts)
    : device_(std::move(device)), parts_(std::move(parts)), scratch_(std::make_unique<Scratch>()) {}
DeviceStack::~DeviceStack() {
  try {
    const Turn turn(*device_);  // or the memory's end may become a part of a graph that another thread records
    graphs_.clear();
    scratch_.reset();
  } catch (...) {
    // An earlier error of the device, which the next call reports.
  }
}

void DeviceStack::grow(Arena& arena, std::size_t bytes) {
  if (bytes <= arena.size()) return;
  graphs_.clear();  // what was recorded leads to memory that will be gone
  arena.grow(bytes, device_->stream.get());
}

void DeviceStack::run(const DeviceCall& call) {
  const Turn turn(*device_);
  const Pass pass(*this, call);
  if (pass.layers().rows == 0) return;
  if (pass.is_step())
    replay(pass.key(), pass);
  else
    pass.layers().launch_all();
  const LayerPass& layers = pass.layers();
  copy(call.out, layers.work.out, product(layers.rows, parts_.out_width(), sizeof(float)), layers.stream);
}

void DeviceStack::replay(const Key& key, const Pass& pass) {
  const auto known = graphs_.find(key);
  if (known == graphs_.end()) {
    if (graphs_.size() >= kMostGraphs) graphs_.clear();
    graphs_.emplace(key, nullptr);
    return pass.layers().launch_all();
  }
  if (!known->second)
    known->second = std::make_unique<Graph>(device_->stream.get(), [layers = pass.layers()] { layers.launch_all(); });
  known->second->replay();
}

void DeviceStack::multiply(const DeviceMap& map, int rows, const float* x, float* out) {
  const Stream stream = device_->stream.get();
  const DeviceMemory narrow(product(rows, map.inputs, size_of(parts_.dtype)), stream);
  convert(std::int64_t{rows} * map.inputs, x, narrow.data(), parts_.dtype, stream);
  device_->products.multiply({.rows = rows,
                              .outputs = map.outputs,
                              .inputs = map.inputs,
                              .dtype = parts_.dtype,
                              .x = narrow.data(),
                              .weight = map.weight,
                              .bias = map.bias,
                              .out = out});
}

void DeviceStack::apply(const DeviceMap& map, Function function, int rows, const float* x, float* out) {
  const Turn turn(*device_);
  const Stream stream = device_->stream.get();
  multiply(map, rows, x, out);
  activate(function, false, rows, map.outputs, out, out, Dtype::float32, stream);
}

void DeviceStack::project_memory(const DeviceMap& in, const Norm& norm, int heads, int head_dim, int rows, const float* x,
                                 const int* sources, const int* positions, void* keys, void* values, int page) {
  const Turn turn(*device_);
  const Stream stream = device_->stream.get();
  const auto count = static_cast<std::size_t>(rows);
  const DeviceMemory names(2 * count * sizeof(int), stream), joined(product(rows, in.outputs, sizeof(float)), stream);
  int* of_rows = names.data<int>();
  send(of_rows, sources, count * sizeof(int), stream);
  send(of_rows + count, positions, count * sizeof(int), stream);
  multiply(in, rows, x, joined.data<float>());
  const std::int64_t row = std::int64_t{heads} * head_dim;
  const auto target = [&](void* data) { return HeadsTarget{data, {page * row, head_dim, row}}; };
  store_heads({.rows = rows,
               .q_heads = 0,
               .kv_heads = heads,
               .head_dim = head_dim,
               .joined = joined.data<float>(),
               .q_norm = {},
               .k_norm = norm,
               .sequences = of_rows,
               .indices = of_rows + count,
               .positions = of_rows + count,
               .q = {},
               .keys = target(keys),
               .values = target(values)},
              parts_.dtype, stream);
}

}  // namespace maskattn::cuda
