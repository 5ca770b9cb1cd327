#include "call.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "maskattn/runtime.hpp"

namespace maskattn {
namespace {

void require_rank4(const py::array& a, const char* name, const char* shape) {
  if (a.ndim() != 4) bad_value(std::string(name) + " must have shape " + shape + ", got " + describe(a));
}

void require_extent(const py::array& a, const char* name, int axis, const char* what, py::ssize_t want, const char* of) {
  if (a.shape(axis) != want)
    bad_value(std::string(name) + " must have " + of + "'s " + what + " " + std::to_string(want) + ", got " +
              std::to_string(a.shape(axis)) + " (" + describe(a) + ")");
}

// The data of an int64 array of shape (batch,), which needs no conversion; null for anything else.
const std::int64_t* int64_per_sequence(const py::object& object, std::int64_t batch) {
  if (!py::isinstance<py::array>(object)) return nullptr;
  const auto a = py::reinterpret_borrow<py::array>(object);
  const bool plain = a.ndim() == 1 && a.shape()[0] == batch && has_dtype<std::int64_t>(a) && (a.flags() & py::array::c_style);
  return plain ? static_cast<const std::int64_t*>(a.data()) : nullptr;
}

void take_packed(AttentionCall& call) {
  const auto longest = [](const std::vector<std::int64_t>& lengths) {
    return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  };
  AttentionInputs& in = call.in;
  const Packed& packed = *call.packed;
  in.batch = static_cast<std::int64_t>(packed.q_starts.size());
  in.q_len = longest(packed.q_lengths);
  in.kv_len = longest(packed.kv_lengths);
  in.q_lengths = packed.q_lengths.data();
  in.kv_lengths = packed.kv_lengths.data();
  in.q.stride[0] = in.k.stride[0] = 0;
  in.q.starts = packed.q_starts.data();
  in.k.starts = packed.kv_starts.data();
}

Factors factors_of(const Floats& a) { return {a.data(), {a.shape(1) * a.shape(2), a.shape(2), 1}}; }

Dtype kv_dtype_of(const AttentionCall& call, const py::array& a, const char* name) {
  return call.paged && call.paged->k_factors ? Dtype::int8 : float_dtype_of(a, name);
}

void take_queries_and_keys(AttentionCall& call, const py::array& q, const py::array& k) {
  AttentionInputs& in = call.in;
  const Dtype q_dtype = float_dtype_of(q, "q"), k_dtype = kv_dtype_of(call, k, "k");
  require_rank4(q, "q", "(batch, q_heads, q_len, head_dim)");
  require_rank4(k, "k", "(batch, kv_heads, kv_len, head_dim)");
  if (call.paged)
    require_extent(q, "q", 0, "batch", call.paged->table.shape(0), "the cache");
  else
    require_extent(k, "k", 0, "batch", q.shape(0), "q");
  require_extent(k, "k", 3, "head_dim", q.shape(3), "q");
  if (k.shape(1) == 0 ? q.shape(1) != 0 : q.shape(1) % k.shape(1) != 0)
    bad_value("k must have a number of heads that divides q's " + std::to_string(q.shape(1)) + ", got " +
              std::to_string(k.shape(1)) + " (" + describe(k) + ")");
  if (q.shape(3) < 1) bad_value("q must have a head_dim of at least 1, got " + describe(q));
  require_contiguous_rows(q, "q");
  require_contiguous_rows(k, "k");
  call.sequences = q.shape(0);
  in.batch = q.shape(0);
  in.q_heads = q.shape(1);
  in.kv_heads = k.shape(1);
  in.q_len = q.shape(2);
  in.kv_len = call.paged ? call.paged->kv_len : k.shape(2);
  in.head_dim = q.shape(3);
  if (in.kv_len > std::numeric_limits<std::int32_t>::max())
    bad_value("k must have fewer than 2**31 keys, got " + std::to_string(in.kv_len));
  in.q = rows_of(q, q_dtype, q.data());
  in.k = rows_of(k, k_dtype, k.data());
  if (!call.paged) return;
  in.pages = {call.paged->table.data(), call.paged->table.shape(1), k.shape(2)};
  if (call.paged->k_factors) in.k_factors = factors_of(*call.paged->k_factors);
}

// A plan knows its lengths and offsets; without one, only lengths matter (every key that exists is seen).
void take_mask(AttentionCall& call, const py::object& kv_lengths) {
  AttentionInputs& in = call.in;
  if (call.plan) {
    const Geometry& g = call.plan->geometry();
    if (g.q_len != in.q_len || g.kv_len != in.kv_len || (g.batch != 1 && g.batch != in.batch) ||
        (g.heads != 1 && g.heads != in.q_heads))
      bad_value("mask must be planned for (batch, q_heads, q_len, kv_len) = " +
                shape_text({in.batch, in.q_heads, in.q_len, in.kv_len}) + " (batch and heads may be 1), got a plan for " +
                shape_text({g.batch, g.heads, g.q_len, g.kv_len}));
    in.mask = call.plan.get();
    return;
  }
  if (!kv_lengths.is_none()) take_lengths(in, kv_lengths, call.kv_lengths);
}

void take_bias(AttentionCall& call, const py::object& given) {
  if (given.is_none()) return;
  AttentionInputs& in = call.in;
  const py::array bias = as_array(given, "bias");
  const Dtype dtype = float_dtype_of(bias, "bias");
  const std::vector<std::int64_t> full = {in.batch, in.q_heads, in.q_len, in.kv_len};
  std::ptrdiff_t strides[4] = {};
  bool fits = bias.ndim() <= 4;
  for (py::ssize_t axis = 0; fits && axis < bias.ndim(); ++axis) {
    const auto to = static_cast<std::size_t>(axis + 4 - bias.ndim());
    fits = bias.shape(axis) == 1 || bias.shape(axis) == full[to];
    if (bias.strides(axis) % bias.itemsize() != 0)
      bad_value("bias must have strides that are multiples of its item size; pass np.ascontiguousarray(bias)");
    strides[to] = bias.shape(axis) == 1 ? 0 : bias.strides(axis) / bias.itemsize();
  }
  if (!fits)
    bad_value("bias must be broadcastable to (batch, q_heads, q_len, kv_len) = " + shape_text(full) + ", got " + describe(bias));
  in.bias = {bias.data(), dtype, {strides[0], strides[1], strides[2]}};
  in.bias_key_stride = strides[3];
  call.bias = bias;
}

void take_modifiers(AttentionCall& call) {
  AttentionInputs& in = call.in;
  in.precision = default_precision();
  if (!call.modifiers) return;
  const Modifiers& given = *call.modifiers;
  if (given.precision) in.precision = static_cast<Precision>(*given.precision);
  const auto data_of = [&](const std::optional<Doubles>& a, const char* name) -> const double* {
    if (!a) return nullptr;
    if (a->shape(0) != in.q_heads)
      bad_value(std::string(name) + " must have one entry per query head, " + std::to_string(in.q_heads) + ", got " +
                std::to_string(a->shape(0)));
    return a->data();
  };
  in.softcap = given.softcap;
  in.sinks = data_of(given.sinks, "sinks");
  in.distance_bias = {data_of(given.table, "bias"), given.table ? given.table->shape(1) / 2 : 0, data_of(given.slopes, "bias")};
  if (given.table || given.slopes) take_offsets(in, call.q_offset);
}

}  // namespace

void take_lengths(AttentionInputs& in, const py::object& kv_lengths, std::vector<std::int64_t>& lengths) {
  const std::size_t batch = static_cast<std::size_t>(in.batch);
  if (PyLong_CheckExact(kv_lengths.ptr())) {
    lengths.assign(batch, integer(kv_lengths, "kv_lengths"));
  } else if (const std::int64_t* given = int64_per_sequence(kv_lengths, in.batch)) {
    lengths.assign(given, given + in.batch);
  } else {
    lengths = integers_per_sequence(kv_lengths, "kv_lengths", in.batch);
    if (lengths.size() == 1) lengths.resize(batch, lengths[0]);
  }
  for (const std::int64_t length : lengths)
    if (length < 0 || length > in.kv_len)
      bad_value("kv_lengths must be from 0 to kv_len = " + std::to_string(in.kv_len) + ", got " + std::to_string(length));
  in.kv_lengths = lengths.data();
}

void take_offsets(AttentionInputs& in, std::vector<std::int64_t>& offsets) {
  offsets.clear();
  for (std::int64_t b = 0; b < in.batch; ++b) {
    const std::int64_t keys = in.kv_lengths ? in.kv_lengths[b] : in.kv_len, rows = in.q_lengths ? in.q_lengths[b] : in.q_len;
    offsets.push_back(in.mask ? in.mask->geometry().offset_of(b) : keys - rows);
  }
  in.q_offset = offsets.data();
}

void take_rows(AttentionCall& call, const py::object& rows) {
  if (rows.is_none()) return;
  call.q_rows = rows.cast<std::vector<std::int64_t>>();
  call.in.q_rows = call.q_rows.data();
  call.in.q_len = static_cast<std::int64_t>(call.q_rows.size());
}

void take_common(AttentionCall& call, const py::array& q, const py::array& k, const Extra& packing, const Extra& pages,
                 const PlanHandle* mask, const py::object& bias, const py::object& scale, const py::object& kv_lengths,
                 const Extra& modifiers, const py::object& threads) {
  if (packing)
    call.packed.emplace((*packing)[0].cast<std::vector<std::int64_t>>(), (*packing)[1].cast<std::vector<std::int64_t>>());
  if (pages)
    call.paged = Paged{(*pages)[0].cast<py::array_t<std::int32_t, py::array::c_style>>(), (*pages)[1].cast<std::int64_t>(),
                       (*pages)[2].cast<std::optional<Floats>>(), (*pages)[3].cast<std::optional<Floats>>()};
  if (modifiers)
    call.modifiers = Modifiers{(*modifiers)[0].cast<double>(), (*modifiers)[1].cast<std::optional<Doubles>>(),
                               (*modifiers)[2].cast<std::optional<Doubles>>(), (*modifiers)[3].cast<std::optional<Doubles>>(),
                               (*modifiers)[4].cast<std::optional<int>>()};
  take_queries_and_keys(call, q, k);
  if (call.packed) take_packed(call);
  if (mask) call.plan = mask->get();
  take_mask(call, kv_lengths);
  take_bias(call, bias);
  take_modifiers(call);
  call.in.scale = scale.is_none() ? 1 / std::sqrt(static_cast<double>(call.in.head_dim)) : number(scale, "scale");
  if (!std::isfinite(call.in.scale)) bad_value("scale must be finite, got " + std::to_string(call.in.scale));
  call.in.threads = thread_count(threads);
}

void take_values(AttentionCall& call, const py::array& k, const py::array& v) {
  AttentionInputs& in = call.in;
  const Dtype dtype = kv_dtype_of(call, v, "v");
  require_rank4(v, "v", "(batch, kv_heads, kv_len, v_head_dim)");
  require_extent(v, "v", 0, "batch", k.shape(0), "k");
  require_extent(v, "v", 1, "kv_heads", in.kv_heads, "k");
  require_extent(v, "v", 2, "kv_len", k.shape(2), "k");
  require_contiguous_rows(v, "v");
  in.v = rows_of(v, dtype, v.data());
  in.v_head_dim = v.shape(3);
  if (call.paged && call.paged->v_factors) in.v_factors = factors_of(*call.paged->v_factors);
  if (call.packed) {
    in.v.stride[0] = 0;
    in.v.starts = call.packed->kv_starts.data();
  }
}

}  // namespace maskattn
