#include "maskattn/layer_stack.hpp"

#include <algorithm>
#include <memory>
#include <utility>

#include "dispatch.hpp"
#include "maskattn/runtime.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

constexpr std::int64_t kKeptRows = 512;   // calls of more rows give their memory back
constexpr std::int64_t kInnerRows = 512;  // of the feed-forward part, which is wide, at a time
constexpr std::int64_t kShare = 1 << 15;  // elements that are worth a thread
constexpr std::int64_t kRounded = 2;      // bytes of a rounded number

struct Buffer {
  std::vector<float> data;
  float* at_least(std::int64_t count) {
    if (data.size() < static_cast<std::size_t>(count)) data.resize(static_cast<std::size_t>(count));
    return data.data();
  }
};

// Kept by the thread, so that steps allocate nothing.
struct Workspace {
  std::vector<std::int64_t> starts, ends, positions;
  Buffer joined, attended, rounded, normed, branch[3];
};

void apply(const StackNorm& norm, const RowsOf& rows) {
  if (norm.root)
    rms_norm(rows, norm.weight, norm.eps);
  else
    layer_norm(rows, norm.weight, norm.bias, norm.eps);
}

// In the order in which decoder/inputs.py adds, so that it rounds alike.
void embed(const StackEmbedding& e, std::int64_t width, std::int64_t token, std::int64_t position, float* x) {
  e.table.row(token, x);
  if (e.scale != 1)
    for (std::int64_t i = 0; i < width; ++i) x[i] *= e.scale;
  if (e.segment)
    for (std::int64_t i = 0; i < width; ++i) x[i] += e.segment[i];
  if (e.positions) {
    const float* row = e.positions + std::clamp<std::int64_t>(position + e.offset, 0, e.position_rows - 1) * width;
    for (std::int64_t i = 0; i < width; ++i) x[i] += row[i];
  }
  if (e.norm) apply(*e.norm, {1, width, x, width, x, width, 1});
}

class Pass {
 public:
  Pass(const StackCall& call, std::int64_t width, DistanceBias bias, Dtype attended, Workspace& work)
      : call_(call), width_(width), bias_(bias), attended_(attended), work_(work) {
    work_.starts.clear();
    work_.ends.clear();
    work_.positions.clear();
    for (std::int64_t b = 0; b < call.batch; ++b) {
      const std::int64_t before = call.stored ? call.stored[b] : 0;
      work_.starts.push_back(rows_);
      work_.ends.push_back(before + call.counts[b]);
      work_.positions.push_back(before);
      rows_ += call.counts[b];
      q_len_ = std::max(q_len_, call.counts[b]);
      kv_len_ = std::max(kv_len_, before + call.counts[b]);
    }
  }

  // What branches make of rows `from`, [rows][width] each, written to `to` or added to what is there.
  void attend(const StackLayer& layer, std::size_t index, const float* from, float* to, bool added) {
    const StackAttention& a = layer.self;
    const std::int64_t q_width = a.heads * a.head_dim, kv_width = a.kv_heads * a.head_dim, all = q_width + 2 * kv_width;
    float* qkv = linear_of(a.in, from, work_.joined);
    float *keys = qkv + q_width, *values = keys + kv_width;
    const StackCache* cache = call_.caches.empty() ? nullptr : &call_.caches[index];
    char* rounded = rounded_rows(all);
    for_sequences(all, [&](std::int64_t b, std::int64_t row, std::int64_t position) {
      float* head = qkv + row * all;
      norm_heads(a.q_norm, head, a.heads, a.head_dim);
      norm_heads(a.k_norm, keys + row * all, a.kv_heads, a.head_dim);
      if (call_.rotary_half > 0) {
        rotate(row, head, a.heads, a.head_dim);
        rotate(row, keys + row * all, a.kv_heads, a.head_dim);
      }
      if (cache) store(*cache, b, position, keys + row * all, values + row * all, a);
      if (rounded) write_row(head, all, rounded + row * all * kRounded);
    });
    if (cache)
      for (const auto& [row, b, position] : call_.shared) store(*cache, b, position, keys + row * all, values + row * all, a);
    AttentionInputs in{};
    in.kv_len = kv_len_;
    in.kv_lengths = work_.ends.data();
    if (cache) {
      in.k = {cache->keys, cache->dtype, {cache->stride[0], cache->stride[1], cache->stride[2]}};
      in.v = {cache->values, cache->dtype, {cache->stride[0], cache->stride[1], cache->stride[2]}};
      in.pages = {cache->table, cache->per_sequence, cache->page_size};
    } else {
      in.k = heads_of(rounded ? rounded + q_width * kRounded : static_cast<void*>(keys), a.head_dim, all);
      in.v = heads_of(rounded ? rounded + (q_width + kv_width) * kRounded : static_cast<void*>(values), a.head_dim, all);
    }
    in.mask = plan(layer, index, a.heads);
    in.distance_bias = bias_;
    if (bias_.table || bias_.slopes) in.q_offset = work_.positions.data();
    in.q = heads_of(rounded ? rounded : static_cast<void*>(qkv), a.head_dim, all);
    finish(in, a, to, added);
  }

  void look_at_memory(const StackLayer& layer, std::size_t index, const float* from, float* to, bool added) {
    const StackAttention& a = *layer.cross;
    const std::int64_t all = a.heads * a.head_dim;
    float* q = linear_of(a.in, from, work_.joined);
    char* rounded = rounded_rows(all);
    if (a.q_norm || rounded)
      for_sequences(all, [&](std::int64_t, std::int64_t row, std::int64_t) {
        norm_heads(a.q_norm, q + row * all, a.heads, a.head_dim);
        if (rounded) write_row(q + row * all, all, rounded + row * all * kRounded);
      });
    AttentionInputs in{};
    in.kv_len = call_.memory_len;
    in.k = call_.memories[index].keys;
    in.v = call_.memories[index].values;
    in.kv_lengths = call_.memory_lengths;
    in.q = heads_of(rounded ? rounded : static_cast<void*>(q), a.head_dim, all);
    finish(in, a, to, added);
  }

  void feed_forward(const StackLayer& layer, const float* from, float* to, bool added) {
    const StackFeedForward& f = layer.feed_forward;
    const std::int64_t outputs = f.up.weight.outputs(), inner = f.gated ? outputs / 2 : outputs, inputs = f.up.weight.inputs();
    const bool at_once = !f.gated || can_gate(f.up.weight);
    for (std::int64_t first = 0; first < rows_; first += kInnerRows) {
      const std::int64_t rows = std::min(kInnerRows, rows_ - first), width = at_once ? inner : outputs;
      float* up = work_.joined.at_least(rows * width);
      // The next product would round what this one ends with.
      const bool rounded = at_once && rounds_rows(f.down.weight) && rounds_rows(f.up.weight);
      const Finish finish = at_once ? Finish{f.activation, f.gated, false, rounded} : Finish{};
      linear({&f.up.weight, rows, from + first * inputs, inputs, f.up.bias, up, width, call_.threads, finish});
      float* active = up;
      if (!at_once) {
        active = work_.attended.at_least(rows * inner);
        activate({rows, inner, up, outputs, active, inner, call_.threads}, *f.activation, f.gated);
      }
      linear({&f.down.weight,
              rows,
              active,
              inner,
              f.down.bias,
              to + first * width_,
              width_,
              call_.threads,
              {{}, false, added},
              rounded});
    }
  }

  void normalize(const StackNorm& norm, const float* from, float* to) const {
    apply(norm, {rows_, width_, from, width_, to, width_, call_.threads});
  }

  void add(float* x, const float* branch) const {
    const std::int64_t count = rows_ * width_;
    parallel_for((count + kShare - 1) / kShare, call_.threads, [&](std::int64_t share) {
      for (std::int64_t i = share * kShare; i < std::min(count, (share + 1) * kShare); ++i) x[i] += branch[i];
    });
  }

  float* normed() { return work_.normed.at_least(rows_ * width_); }
  float* branch(int i) { return work_.branch[i].at_least(rows_ * width_); }
  std::int64_t rows() const { return rows_; }

 private:
  float* linear_of(const StackMap& map, const float* from, Buffer& buffer) const {
    float* to = buffer.at_least(rows_ * map.weight.outputs());
    linear({&map.weight, rows_, from, map.weight.inputs(), map.bias, to, map.weight.outputs(), call_.threads});
    return to;
  }

  // body(sequence, row, position) for every row, of `width` elements.
  template <class Body>
  void for_sequences(std::int64_t width, const Body& body) const {
    const int threads = rows_ * width < 2 * kShare ? 1 : call_.threads;
    parallel_for(call_.batch * threads, threads, [&](std::int64_t index) {
      const std::int64_t b = index / threads, part = index % threads, count = call_.counts[b];
      for (std::int64_t i = count * part / threads; i < count * (part + 1) / threads; ++i)
        body(b, work_.starts[static_cast<std::size_t>(b)] + i, work_.positions[static_cast<std::size_t>(b)] + i);
    });
  }

  static void norm_heads(const std::optional<StackNorm>& norm, float* x, std::int64_t heads, std::int64_t dim) {
    if (norm) apply(*norm, {heads, dim, x, dim, x, dim, 1});
  }

  // Each coordinate of the first half turns with the one of the second half.
  void rotate(std::int64_t row, float* x, std::int64_t heads, std::int64_t dim) const {
    const std::int64_t half = call_.rotary_half;
    const float *cosine = call_.cosines + row * half, *sine = call_.sines + row * half;
    for (float* head = x; head < x + heads * dim; head += dim)
      for (std::int64_t i = 0; i < half; ++i) {
        const float first = head[i], second = head[half + i];
        head[i] = first * cosine[i] - second * sine[i];
        head[half + i] = second * cosine[i] + first * sine[i];
      }
  }

  static void store(const StackCache& cache, std::int64_t b, std::int64_t position, const float* keys, const float* values,
                    const StackAttention& a) {
    const auto write = current_kernels().f32.write_row[static_cast<int>(cache.dtype)];
    const std::int64_t page = cache.table[b * cache.per_sequence + position / cache.page_size];
    const auto bytes = static_cast<std::ptrdiff_t>(size_of(cache.dtype));
    for (std::int64_t h = 0; h < a.kv_heads; ++h) {
      const std::ptrdiff_t row = page * cache.stride[0] + h * cache.stride[1] + position % cache.page_size * cache.stride[2];
      write(keys + h * a.head_dim, static_cast<int>(a.head_dim), static_cast<char*>(cache.keys) + row * bytes);
      write(values + h * a.head_dim, static_cast<int>(a.head_dim), static_cast<char*>(cache.values) + row * bytes);
    }
  }

  // Of the layer's mask for these rows; layers with one mask share it. Null: rows see all keys.
  const MaskPlan* plan(const StackLayer& layer, std::size_t index, std::int64_t heads) {
    const MaskRef& mask = call_.masks.empty() ? layer.mask : call_.masks[index];
    if (!mask || (q_len_ == 1 && layer.looks_ahead)) return nullptr;
    for (const auto& [known, made] : plans_)
      if (known == mask.get() && made->geometry().heads == heads) return made.get();
    const Geometry geometry{call_.batch, heads, q_len_, kv_len_, work_.positions, work_.ends};
    plans_.emplace_back(mask.get(), std::make_unique<MaskPlan>(mask, geometry, call_.threads));
    return plans_.back().second.get();
  }

  // Memory for rows of `width` rounded numbers, null where there is nothing to round.
  char* rounded_rows(std::int64_t width) {
    if (attended_ == Dtype::float32) return nullptr;
    return reinterpret_cast<char*>(work_.rounded.at_least((rows_ * width + 1) / 2));
  }

  void write_row(const float* from, std::int64_t width, void* to) const {
    current_kernels().f32.write_row[static_cast<int>(attended_)](from, static_cast<int>(width), to);
  }

  // Heads that stand side by side in rows of `width`.
  Rows<const void> heads_of(const void* data, std::int64_t head_dim, std::int64_t width) const {
    return {data, attended_, {0, head_dim, width}, work_.starts.data()};
  }

  void finish(AttentionInputs& in, const StackAttention& a, float* to, bool added) {
    in.batch = call_.batch;
    in.q_heads = a.heads;
    in.kv_heads = a.kv_heads;
    in.q_len = q_len_;
    in.q_lengths = call_.counts;
    in.head_dim = in.v_head_dim = a.head_dim;
    in.scale = a.scale;
    in.softcap = a.softcap;
    in.precision = default_precision();
    in.threads = call_.threads;
    const std::int64_t inner = a.heads * a.head_dim;
    float* attended = work_.attended.at_least(rows_ * inner);
    void* out = attended;
    // What the rounded rows were made from is not needed any more.
    if (attended_ != Dtype::float32) out = work_.joined.at_least((rows_ * inner + 1) / 2);
    attention(in, {out, attended_, {0, a.head_dim, inner}, work_.starts.data()}, {});
    const bool rounded = attended_ == Dtype::bfloat16 && rounds_rows(a.out.weight);
    if (out != attended && !rounded) {
      const auto read_row = current_kernels().f32.read_row[static_cast<int>(attended_)];
      for_sequences(inner, [&](std::int64_t, std::int64_t row, std::int64_t) {
        read_row(static_cast<const char*>(out) + row * inner * kRounded, static_cast<int>(inner), attended + row * inner);
      });
    }
    const void* from = rounded ? out : attended;
    linear({&a.out.weight, rows_, from, inner, a.out.bias, to, width_, call_.threads, {{}, false, added}, rounded});
  }

  const StackCall& call_;
  std::int64_t width_;
  DistanceBias bias_;
  Dtype attended_;
  Workspace& work_;
  std::int64_t rows_ = 0, q_len_ = 0, kv_len_ = 0;
  std::vector<std::pair<const MaskExpr*, std::unique_ptr<MaskPlan>>> plans_;
};

}  // namespace

LayerStack::LayerStack(std::vector<StackLayer> layers, std::int64_t width, StackPlacement placement, DistanceBias bias,
                       Dtype attended, std::optional<StackEnds> ends)
    : layers_(std::move(layers)),
      width_(width),
      placement_(placement),
      bias_(bias),
      attended_(attended),
      ends_(std::move(ends)) {}

bool LayerStack::reads_memory() const {
  return std::any_of(layers_.begin(), layers_.end(), [](const StackLayer& layer) { return layer.cross.has_value(); });
}

void LayerStack::run(const StackCall& call) const {
  thread_local Workspace work;
  Pass pass(call, width_, bias_, attended_, work);
  if (pass.rows() == 0) return;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const StackLayer& layer = layers_[i];
    int branches = 0;
    // One residual branch: the norm, what it does, the inner norm, the sum; side by side, sums come at the end.
    const auto branch = [&](const StackNorm& norm, const std::optional<StackNorm>& inner, const auto& body) {
      const float* from = call.x;
      if (placement_.before) {
        pass.normalize(norm, call.x, pass.normed());
        from = pass.normed();
      }
      const bool added = !placement_.parallel && !inner;
      float* to = added ? call.x : pass.branch(placement_.parallel ? branches++ : 0);
      body(from, to, added);
      if (inner) pass.normalize(*inner, to, to);
      if (placement_.parallel) return;
      if (!added) pass.add(call.x, to);
      if (placement_.after) pass.normalize(norm, call.x, call.x);
    };
    branch(layer.self_norm, layer.self_inner,
           [&](const float* from, float* to, bool added) { pass.attend(layer, i, from, to, added); });
    if (layer.cross)
      branch(*layer.cross_norm, {},
             [&](const float* from, float* to, bool added) { pass.look_at_memory(layer, i, from, to, added); });
    branch(layer.feed_forward_norm, layer.feed_forward_inner,
           [&](const float* from, float* to, bool added) { pass.feed_forward(layer, from, to, added); });
    if (!placement_.parallel) continue;
    // Summed from the last branch, and the residual stream at the end.
    for (int b = branches - 2; b >= 0; --b) pass.add(pass.branch(branches - 1), pass.branch(b));
    pass.add(call.x, pass.branch(branches - 1));
  }
  if (pass.rows() > kKeptRows) work = {};
}

std::pair<std::int64_t, std::int64_t> LayerStack::memory_sizes() const {
  std::pair<std::int64_t, std::int64_t> sizes{0, 0};
  for (const StackLayer& layer : layers_)
    if (layer.cross) sizes = {layer.cross->memory->weight.inputs(), sizes.second + layer.cross->memory->weight.outputs()};
  return sizes;
}

void LayerStack::remember(const float* x, std::int64_t rows, Dtype dtype, void* out, int threads) const {
  const auto write = current_kernels().f32.write_row[static_cast<int>(dtype)];
  Buffer buffer;
  auto* to = static_cast<char*>(out);
  for (const StackLayer& layer : layers_) {
    if (!layer.cross) continue;
    const StackAttention& a = *layer.cross;
    const std::int64_t all = 2 * a.kv_heads * a.head_dim, inputs = a.memory->weight.inputs();
    const std::int64_t row_bytes = a.head_dim * static_cast<std::int64_t>(size_of(dtype));
    for (std::int64_t first = 0; first < rows; first += kInnerRows) {
      const std::int64_t count = std::min(kInnerRows, rows - first);
      float* both = buffer.at_least(count * all);
      linear({&a.memory->weight, count, x + first * inputs, inputs, a.memory->bias, both, all, threads});
      parallel_for(2 * a.kv_heads, count * all < 2 * kShare ? 1 : threads, [&](std::int64_t head) {
        for (std::int64_t r = 0; r < count; ++r) {
          float* from = both + r * all + head * a.head_dim;
          if (a.k_norm && head < a.kv_heads) apply(*a.k_norm, {1, a.head_dim, from, a.head_dim, from, a.head_dim, 1});
          write(from, static_cast<int>(a.head_dim), to + (head * rows + first + r) * row_bytes);
        }
      });
    }
    to += 2 * a.kv_heads * rows * row_bytes;
  }
}

void LayerStack::step(const StackCall& call, const std::int64_t* tokens) const {
  for (std::int64_t b = 0; b < call.batch; ++b) embed(ends_->embedding, width_, tokens[b], call.stored[b], call.x + b * width_);
  run(call);
  for (const StackNorm& norm : ends_->norms) apply(norm, {call.batch, width_, call.x, width_, call.x, width_, call.threads});
}

}  // namespace maskattn
