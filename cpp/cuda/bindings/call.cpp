#include "cuda/bindings/call.hpp"

#include <limits>

namespace maskattn::cuda {
namespace {

void require_rank4(const Array& a, const char* name, const char* shape) {
  if (a.ndim() != 4) bad_value(std::string(name) + " must have shape " + shape + ", got " + a.describe());
}

void require_extent(const Array& a, const char* name, std::size_t axis, const char* what, std::int64_t want, const char* of) {
  if (a.shape[axis] != want)
    bad_value(std::string(name) + " must have " + of + "'s " + what + " " + std::to_string(want) + ", got " +
              std::to_string(a.shape[axis]) + " (" + a.describe() + ")");
}

void require_contiguous_rows(const Array& a, const char* name) {
  if (a.shape.back() > 1 && a.strides.back() != 1)
    bad_value(std::string(name) + " must have a contiguous last axis, got a stride of " +
              std::to_string(a.strides.back() * a.item_bytes()) + " bytes; copy it first");
}

void require_q_dtype(const Array& a, const char* name, Dtype want, const Array& q) {
  if (float_dtype_of(a, name) != want)
    bad_type(std::string(name) + " must have the dtype of q, " + q.dtype_name() + ", on CUDA, got " + a.dtype_name() +
             "; convert it first");
}

void require_bytes(const Array& a, const char* name, const Array& scales) {
  if (a.dtype.code != dlpack::Int || a.dtype.bits != 8)
    bad_type(std::string(name) + " must be int8 where it has scales, got " + a.dtype_name());
  const std::vector<std::int64_t> shape(a.shape.begin(), a.shape.end() - 1);
  if (scales.shape != shape || scales.dtype.code != dlpack::Float || scales.dtype.bits != 32 || !scales.contiguous())
    bad_value(std::string(name) + " must have contiguous float32 scales of shape " + shape_text(shape) + ", got " +
              scales.describe());
}

// Dtypes of keys and values.
void take_stored(AttentionCall& call, const Array& q, const Array& k, const Array& v, const MaybePages& pages) {
  if (!pages || !std::get<1>(*pages) || !std::get<2>(*pages)) {
    require_q_dtype(k, "k", call.dtype, q);
    require_q_dtype(v, "v", call.dtype, q);
    return;
  }
  const auto& [table, k_scales, v_scales] = *pages;
  require_bytes(k, "k", *k_scales);
  require_bytes(v, "v", *v_scales);
  call.k_scales = static_cast<const float*>(k_scales->data);
  call.v_scales = static_cast<const float*>(v_scales->data);
}

void take_pages(AttentionCall& call, const Array& q, const Array& k, const Array& table) {
  if (table.ndim() != 2 || table.shape[0] != q.shape[0] || table.dtype.code != dlpack::Int || table.dtype.bits != 32 ||
      !table.contiguous())
    bad_value("page_table must be a contiguous int32 array of shape (batch, pages of a sequence), got " + table.describe());
  if (k.shape[2] % 16 != 0) bad_value("k must have pages of a multiple of 16 rows, got " + std::to_string(k.shape[2]));
  call.page_table = static_cast<const int*>(table.data);
  call.pages_per_sequence = static_cast<int>(table.shape[1]);
  call.page_size = static_cast<int>(k.shape[2]);
}

template <class Data>
Rows<Data> rows_of(const Array& a, Dtype dtype) {
  return {a.data,
          dtype,
          {static_cast<std::ptrdiff_t>(a.strides[0]), static_cast<std::ptrdiff_t>(a.strides[1]),
           static_cast<std::ptrdiff_t>(a.strides[2])}};
}

void take_bias(AttentionCall& call, const MaybeArray& bias) {
  if (!bias) return;
  call.bias_dtype = float_dtype_of(*bias, "bias");
  const std::vector<std::int64_t> full = {call.batch, call.q_heads, call.q_len, call.kv_len};
  bool fits = bias->ndim() <= 4;
  for (std::size_t axis = 0; fits && axis < bias->shape.size(); ++axis) {
    const std::size_t to = axis + 4 - bias->shape.size();
    fits = bias->shape[axis] == 1 || bias->shape[axis] == full[to];
    call.bias_stride[to] = bias->shape[axis] == 1 ? 0 : bias->strides[axis];
  }
  if (!fits)
    bad_value("bias must be broadcastable to (batch, q_heads, q_len, kv_len) = " + shape_text(full) + ", got " +
              bias->describe());
  call.bias = bias->data;
}

// A contiguous float32 array of a row per query head.
const float* floats_per_head(const AttentionCall& call, const MaybeArray& a, const char* name) {
  if (!a) return nullptr;
  if (a->dtype.code != dlpack::Float || a->dtype.bits != 32)
    bad_type(std::string(name) + " must be float32 on CUDA, got " + a->dtype_name());
  if (a->ndim() < 1 || a->shape[0] != call.q_heads)
    bad_value(std::string(name) + " must have one entry per query head, " + std::to_string(call.q_heads) + ", got " +
              (a->ndim() < 1 ? a->describe() : std::to_string(a->shape[0])));
  if (!a->contiguous()) bad_value(std::string(name) + " must be contiguous on CUDA; copy it first");
  return static_cast<const float*>(a->data);
}

}  // namespace

void take_arrays(AttentionCall& call, const Array& q, const Array& k, const Array& v, const MaybePages& pages, int kv_len) {
  call.dtype = float_dtype_of(q, "q");
  require_rank4(q, "q", "(batch, q_heads, q_len, head_dim)");
  require_rank4(k, "k", "(batch, kv_heads, kv_len, head_dim)");
  require_rank4(v, "v", "(batch, kv_heads, kv_len, v_head_dim)");
  take_stored(call, q, k, v, pages);
  if (pages)
    require_extent(q, "q", 0, "batch", std::get<0>(*pages).shape[0], "the cache");
  else
    require_extent(k, "k", 0, "batch", q.shape[0], "q");
  require_extent(k, "k", 3, "head_dim", q.shape[3], "q");
  if (k.shape[1] == 0 ? q.shape[1] != 0 : q.shape[1] % k.shape[1] != 0)
    bad_value("k must have a number of heads that divides q's " + std::to_string(q.shape[1]) + ", got " +
              std::to_string(k.shape[1]) + " (" + k.describe() + ")");
  require_extent(v, "v", 0, "batch", k.shape[0], "k");
  require_extent(v, "v", 1, "kv_heads", k.shape[1], "k");
  require_extent(v, "v", 2, "kv_len", k.shape[2], "k");
  for (const auto& [a, name] : {std::pair{&q, "q"}, {&k, "k"}, {&v, "v"}}) {
    require_contiguous_rows(*a, name);
    constexpr std::int64_t most = 256;
    if (a->shape[3] < 1 || a->shape[3] > most)
      bad_value(std::string(name) + " must have a head_dim from 1 to 256 on CUDA, got " + a->describe());
    for (const std::int64_t extent : a->shape)
      if (extent > std::numeric_limits<std::int32_t>::max()) bad_value(std::string(name) + " must have extents below 2**31");
  }
  call.batch = static_cast<int>(q.shape[0]);
  call.q_heads = static_cast<int>(q.shape[1]);
  call.kv_heads = static_cast<int>(k.shape[1]);
  call.q_len = static_cast<int>(q.shape[2]);
  call.kv_len = pages ? kv_len : static_cast<int>(k.shape[2]);
  call.head_dim = static_cast<int>(q.shape[3]);
  call.v_head_dim = static_cast<int>(v.shape[3]);
  call.q = rows_of<const void>(q, call.dtype);
  const Dtype stored = call.k_scales ? Dtype::int8 : call.dtype;
  call.k = rows_of<const void>(k, stored);
  call.v = rows_of<const void>(v, stored);
  if (pages) take_pages(call, q, k, std::get<0>(*pages));
}

void take_results(AttentionCall& call, const Array& q, const Array& out, const MaybeArray& lse) {
  if (float_dtype_of(out, "out") != call.dtype)
    bad_type("out must have the dtype of q, " + q.dtype_name() + ", got " + out.dtype_name());
  const std::vector<std::int64_t> shape = {call.batch, call.q_heads, call.q_len, call.v_head_dim};
  if (out.shape != shape) bad_value("out must have shape " + shape_text(shape) + ", got " + out.describe());
  if (out.read_only) bad_value("out must be writeable, got a read-only array");
  require_contiguous_rows(out, "out");
  call.out = rows_of<void>(out, call.dtype);
  call.lse = lse ? static_cast<float*>(lse->data) : nullptr;
}

void take_plan(AttentionCall& call, const Plan& plan) {
  if (plan.extents.q_len != call.q_len || plan.extents.kv_len != call.kv_len || (plan.batch != 1 && plan.batch != call.batch) ||
      (plan.heads != 1 && plan.heads != call.q_heads))
    bad_value("mask must be planned for (batch, q_heads, q_len, kv_len) = " +
              shape_text({call.batch, call.q_heads, call.q_len, call.kv_len}) + " (batch and heads may be 1), got a plan for " +
              shape_text({plan.batch, plan.heads, plan.extents.q_len, plan.extents.kv_len}));
  call.plan = plan.view;
}

void take_terms(AttentionCall& call, const MaybeArray& bias, double scale, double softcap, const MaybeArray& sinks,
                const MaybeArray& table, const MaybeArray& slopes, int precision) {
  take_bias(call, bias);
  call.sinks = floats_per_head(call, sinks, "sinks");
  call.bias_table = floats_per_head(call, table, "bias");
  call.bias_reach = table ? static_cast<int>(table->shape[1] / 2) : 0;
  call.slopes = floats_per_head(call, slopes, "bias");
  call.scale = static_cast<float>(scale);
  call.softcap = static_cast<float>(softcap);
  call.precision = static_cast<Precision>(precision);
}

std::unique_ptr<DeviceMemory> take_offsets(AttentionCall& call, const Plan& plan, Stream stream) {
  if (!call.bias_table && !call.slopes) return nullptr;
  auto memory = std::make_unique<DeviceMemory>(static_cast<std::size_t>(call.batch) * TakenPositions::kBytes, stream);
  const TakenPositions taken(memory->data(), call.batch);
  const std::int64_t step = plan.sequences == 1 ? 0 : 1;
  take_positions({{plan.q_offset, true, step}, {plan.kv_lengths, true, step}, {}}, call.batch, call.q_len, call.kv_len, taken,
                 stream);
  call.q_offset = taken.near;
  return memory;
}

void let_go(const Plan& plan, std::initializer_list<const Array*> arrays, const MaybePages& pages, Stream stream) {
  if (!capturing(stream)) wait_for(plan.stream, stream);
  let_go(arrays, stream);
  if (!pages) return;
  const auto& [table, k_scales, v_scales] = *pages;
  let_go({&table, pointer_to(k_scales), pointer_to(v_scales)}, stream);
}

}  // namespace maskattn::cuda
