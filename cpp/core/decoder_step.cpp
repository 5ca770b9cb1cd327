#include "maskattn/decoder_step.hpp"

#include <algorithm>

#include "maskattn/runtime.hpp"

namespace maskattn {
namespace {

struct Buffer {
  std::vector<float> data;
  float* at_least(std::int64_t count) {
    if (data.size() < static_cast<std::size_t>(count)) data.resize(static_cast<std::size_t>(count));
    return data.data();
  }
};

// Kept by the thread, so that steps allocate nothing.
struct Workspace {
  std::vector<std::int64_t> starts, ends;
  Buffer joined, attended, normed, branch[3];
};

class Step {
 public:
  Step(const StepCall& call, std::int64_t width, DistanceBias bias, Workspace& work)
      : call_(call), width_(width), bias_(bias), work_(work) {
    work_.starts.assign(call.lengths, call.lengths + call.batch);
    work_.ends.clear();
    for (const std::int64_t start : work_.starts) work_.ends.push_back(start + 1);
  }

  // What branches make of rows `from`, [batch][width] each.
  void attend(const StepLayer& layer, std::size_t index, const float* from, float* to) {
    const StepAttention& a = layer.self;
    const std::int64_t q_width = a.heads * a.head_dim, kv_width = a.kv_heads * a.head_dim, all = q_width + 2 * kv_width;
    float* qkv = linear_of(a.in, from, work_.joined);
    float *keys = qkv + q_width, *values = keys + kv_width;
    norm_heads(a.q_norm, qkv, all, a.heads, a.head_dim);
    norm_heads(a.k_norm, keys, all, a.kv_heads, a.head_dim);
    if (call_.rotary_half > 0) {
      rotate(qkv, all, a.heads, a.head_dim);
      rotate(keys, all, a.kv_heads, a.head_dim);
    }
    const StepCache& cache = call_.caches[index];
    store(cache, keys, values, all, a);
    AttentionInputs in{};
    in.batch = call_.batch;
    in.kv_len = call_.longest + 1;
    in.k = {cache.keys, Dtype::float32, {cache.stride[0], cache.stride[1], cache.stride[2]}};
    in.v = {cache.values, Dtype::float32, {cache.stride[0], cache.stride[1], cache.stride[2]}};
    in.pages = {cache.table, 1, cache.page_size};
    in.kv_lengths = work_.ends.data();
    std::optional<MaskPlan> plan;
    if (layer.mask) {
      plan.emplace(layer.mask, Geometry{call_.batch, a.heads, 1, in.kv_len, work_.starts, work_.ends}, 1);
      in.mask = &*plan;
    }
    in.distance_bias = bias_;
    if (bias_.table || bias_.slopes) in.q_offset = call_.lengths;
    finish(in, a, qkv, all, to);
  }

  void look_at_memory(const StepLayer& layer, std::size_t index, const float* from, float* to) {
    const StepAttention& a = *layer.cross;
    float* q = linear_of(a.in, from, work_.joined);
    norm_heads(a.q_norm, q, a.heads * a.head_dim, a.heads, a.head_dim);
    const StepMemory& memory = call_.memories[index];
    AttentionInputs in{};
    in.batch = call_.batch;
    in.kv_len = memory.kv_len;
    in.k = memory.keys;
    in.v = memory.values;
    in.kv_lengths = call_.memory_lengths;
    finish(in, a, q, a.heads * a.head_dim, to);
  }

  void feed_forward(const StepLayer& layer, const float* from, float* to) {
    const StepFeedForward& f = layer.feed_forward;
    float* up = linear_of(f.up, from, work_.joined);
    const std::int64_t outputs = f.up.weight.outputs(), inner = f.gated ? outputs / 2 : outputs;
    float* active = up;
    if (f.activation) {
      active = work_.attended.at_least(call_.batch * inner);
      activate({call_.batch, inner, up, outputs, active, inner, call_.threads}, *f.activation, f.gated);
    }
    linear({&f.down.weight, call_.batch, active, inner, f.down.bias, to, width_, call_.threads});
  }

  void normalize(const StepNorm& norm, const float* from, float* to) const {
    apply(norm, {call_.batch, width_, from, width_, to, width_, call_.threads});
  }

  float* normed() { return work_.normed.at_least(call_.batch * width_); }
  float* branch(int i) { return work_.branch[i].at_least(call_.batch * width_); }
  std::int64_t elements() const { return call_.batch * width_; }

 private:
  static void apply(const StepNorm& norm, const RowsOf& rows) {
    if (norm.root)
      rms_norm(rows, norm.weight, norm.eps);
    else
      layer_norm(rows, norm.weight, norm.bias, norm.eps);
  }

  float* linear_of(const StepMap& map, const float* from, Buffer& buffer) const {
    float* to = buffer.at_least(call_.batch * map.weight.outputs());
    linear({&map.weight, call_.batch, from, map.weight.inputs(), map.bias, to, map.weight.outputs(), call_.threads});
    return to;
  }

  void norm_heads(const std::optional<StepNorm>& norm, float* x, std::int64_t stride, std::int64_t heads,
                  std::int64_t dim) const {
    if (!norm) return;
    for (std::int64_t b = 0; b < call_.batch; ++b) apply(*norm, {heads, dim, x + b * stride, dim, x + b * stride, dim, 1});
  }

  // Each coordinate of the first half turns with the one of the second half.
  void rotate(float* x, std::int64_t stride, std::int64_t heads, std::int64_t dim) const {
    const std::int64_t half = call_.rotary_half;
    for (std::int64_t b = 0; b < call_.batch; ++b) {
      const float *cosine = call_.cosines + b * call_.rotary_stride, *sine = call_.sines + b * call_.rotary_stride;
      for (std::int64_t h = 0; h < heads; ++h) {
        float* head = x + b * stride + h * dim;
        for (std::int64_t i = 0; i < half; ++i) {
          const float first = head[i], second = head[half + i];
          head[i] = first * cosine[i] - second * sine[i];
          head[half + i] = second * cosine[i] + first * sine[i];
        }
      }
    }
  }

  void store(const StepCache& cache, const float* keys, const float* values, std::int64_t stride, const StepAttention& a) const {
    for (std::int64_t b = 0; b < call_.batch; ++b)
      for (std::int64_t h = 0; h < a.kv_heads; ++h) {
        const std::ptrdiff_t row = cache.table[b] * cache.stride[0] + h * cache.stride[1] + call_.lengths[b] * cache.stride[2];
        const std::ptrdiff_t from = b * stride + h * a.head_dim;
        std::copy_n(keys + from, a.head_dim, cache.keys + row);
        std::copy_n(values + from, a.head_dim, cache.values + row);
      }
  }

  void finish(AttentionInputs& in, const StepAttention& a, const float* q, std::ptrdiff_t q_stride, float* to) {
    in.q_heads = a.heads;
    in.kv_heads = a.kv_heads;
    in.q_len = 1;
    in.head_dim = in.v_head_dim = a.head_dim;
    in.q = {q, Dtype::float32, {q_stride, a.head_dim, 0}};
    in.scale = a.scale;
    in.softcap = a.softcap;
    in.precision = default_precision();
    in.threads = call_.threads;
    const std::int64_t inner = a.heads * a.head_dim;
    float* attended = work_.attended.at_least(call_.batch * inner);
    attention(in, {attended, Dtype::float32, {inner, a.head_dim, 0}}, {});
    linear({&a.out.weight, call_.batch, attended, inner, a.out.bias, to, width_, call_.threads});
  }

  const StepCall& call_;
  std::int64_t width_;
  DistanceBias bias_;
  Workspace& work_;
};

void add(float* x, const float* branch, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) x[i] += branch[i];
}

}  // namespace

DecoderStep::DecoderStep(std::vector<StepLayer> layers, std::int64_t width, StepPlacement placement, DistanceBias bias)
    : layers_(std::move(layers)), width_(width), placement_(placement), bias_(bias) {}

void DecoderStep::run(const StepCall& call) const {
  if (call.batch == 0) return;
  thread_local Workspace work;
  Step step(call, width_, bias_, work);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const StepLayer& layer = layers_[i];
    int branches = 0;
    // One residual branch: the norm, what it does, the inner norm, the sum; side by side, sums come at the end.
    const auto branch = [&](const StepNorm& norm, const std::optional<StepNorm>& inner, const auto& body) {
      const float* from = call.x;
      if (placement_.before) {
        step.normalize(norm, call.x, step.normed());
        from = step.normed();
      }
      float* to = step.branch(placement_.parallel ? branches++ : 0);
      body(from, to);
      if (inner) step.normalize(*inner, to, to);
      if (placement_.parallel) return;
      add(call.x, to, step.elements());
      if (placement_.after) step.normalize(norm, call.x, call.x);
    };
    branch(layer.self_norm, layer.self_inner, [&](const float* from, float* to) { step.attend(layer, i, from, to); });
    if (layer.cross)
      branch(*layer.cross_norm, {}, [&](const float* from, float* to) { step.look_at_memory(layer, i, from, to); });
    branch(layer.feed_forward_norm, layer.feed_forward_inner,
           [&](const float* from, float* to) { step.feed_forward(layer, from, to); });
    if (!placement_.parallel) continue;
    // Summed from the last branch, and the residual stream at the end.
    for (int b = branches - 2; b >= 0; --b) add(step.branch(branches - 1), step.branch(b), step.elements());
    add(call.x, step.branch(branches - 1), step.elements());
  }
}

}  // namespace maskattn
