#include "maskattn/attention.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "borrow.hpp"
#include "plans.hpp"

namespace maskattn {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

// Borrows a (batch, heads, length, dim) array.
template <class Data>
Rows<Data> rows_of(const py::array& a, Dtype dtype, Data* data) {
  Rows<Data> rows{data, dtype, {}};
  for (int axis = 0; axis < 3; ++axis) rows.stride[axis] = a.strides(axis) / a.itemsize();
  return rows;
}

void require_rank4(const py::array& a, const char* name, const char* shape) {
  if (a.ndim() != 4) bad_value(std::string(name) + " must have shape " + shape + ", got " + describe(a));
}

void require_extent(const py::array& a, const char* name, int axis, const char* what, py::ssize_t want, const char* of) {
  if (a.shape(axis) != want)
    bad_value(std::string(name) + " must have " + of + "'s " + what + " " + std::to_string(want) + ", got " +
              std::to_string(a.shape(axis)) + " (" + describe(a) + ")");
}

// Sequences laid one behind the other in arrays of batch 1: where each begins, and how long it is.
struct Packed {
  std::vector<std::int64_t> q_starts, q_lengths, kv_starts, kv_lengths;

  // From cumulative lengths, which the Python function has checked.
  Packed(const std::vector<std::int64_t>& cu_q, const std::vector<std::int64_t>& cu_kv) {
    split(cu_q, q_starts, q_lengths);
    split(cu_kv, kv_starts, kv_lengths);
  }

 private:
  static void split(const std::vector<std::int64_t>& cumulative, std::vector<std::int64_t>& starts,
                    std::vector<std::int64_t>& lengths) {
    for (std::size_t i = 0; i + 1 < cumulative.size(); ++i) {
      starts.push_back(cumulative[i]);
      lengths.push_back(cumulative[i + 1] - cumulative[i]);
    }
  }
};

// A cache layer's arrays, as cache.py made them: k and v are pools of pages then.
struct Paged {
  py::array_t<std::int32_t, py::array::c_style> table;  // (batch, pages of a sequence)
  std::int64_t kv_len;
  std::optional<Floats> k_factors, v_factors;  // (pages, kv_heads, page_size) of int8 pools
};

// Softcap, sinks (q_heads,), and what depends on the distance: table (q_heads, 2 reach + 1), slopes (q_heads,).
struct Modifiers {
  double softcap;
  std::optional<Doubles> sinks, table, slopes;
};

// What all functions have in common; the arrays that AttentionInputs points into live here.
struct Call {
  AttentionInputs in{};
  std::optional<Packed> packed;
  std::optional<Paged> paged;
  std::optional<Modifiers> modifiers;
  std::shared_ptr<const MaskPlan> plan;
  std::vector<std::int64_t> kv_lengths, q_offset, q_rows;
  py::array bias;
  py::ssize_t sequences = 0;  // of the arrays: 1 where sequences are packed
};

void take_packed(Call& call) {
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

Dtype kv_dtype_of(const Call& call, const py::array& a, const char* name) {
  return call.paged && call.paged->k_factors ? Dtype::int8 : float_dtype_of(a, name);
}

void take_queries_and_keys(Call& call, const py::array& q, const py::array& k) {
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
void take_mask(Call& call, const py::object& kv_lengths) {
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
  if (kv_lengths.is_none()) return;
  call.kv_lengths = integers_per_sequence(kv_lengths, "kv_lengths", in.batch);
  if (call.kv_lengths.size() == 1) call.kv_lengths.resize(static_cast<std::size_t>(in.batch), call.kv_lengths[0]);
  for (const std::int64_t length : call.kv_lengths)
    if (length < 0 || length > in.kv_len)
      bad_value("kv_lengths must be from 0 to kv_len = " + std::to_string(in.kv_len) + ", got " + std::to_string(length));
  in.kv_lengths = call.kv_lengths.data();
}

void take_bias(Call& call, const py::object& bias) {
  if (bias.is_none()) return;
  AttentionInputs& in = call.in;
  call.bias = as_array(bias, "bias");
  const Dtype dtype = float_dtype_of(call.bias, "bias");
  const std::vector<std::int64_t> full = {in.batch, in.q_heads, in.q_len, in.kv_len};
  std::ptrdiff_t strides[4] = {};
  bool fits = call.bias.ndim() <= 4;
  for (py::ssize_t axis = 0; fits && axis < call.bias.ndim(); ++axis) {
    const auto to = static_cast<std::size_t>(axis + 4 - call.bias.ndim());
    fits = call.bias.shape(axis) == 1 || call.bias.shape(axis) == full[to];
    if (call.bias.strides(axis) % call.bias.itemsize() != 0)
      bad_value("bias must have strides that are multiples of its item size; pass np.ascontiguousarray(bias)");
    strides[to] = call.bias.shape(axis) == 1 ? 0 : call.bias.strides(axis) / call.bias.itemsize();
  }
  if (!fits)
    bad_value("bias must be broadcastable to (batch, q_heads, q_len, kv_len) = " + shape_text(full) + ", got " +
              describe(call.bias));
  in.bias = {call.bias.data(), dtype, {strides[0], strides[1], strides[2]}};
  in.bias_key_stride = strides[3];
}

// Where the first query of each sequence stands, which a bias by distance asks for.
void take_offsets(Call& call) {
  AttentionInputs& in = call.in;
  for (std::int64_t b = 0; b < in.batch; ++b) {
    const std::int64_t keys = in.kv_lengths ? in.kv_lengths[b] : in.kv_len, rows = in.q_lengths ? in.q_lengths[b] : in.q_len;
    call.q_offset.push_back(in.mask ? in.mask->geometry().offset_of(b) : keys - rows);
  }
  in.q_offset = call.q_offset.data();
}

void take_modifiers(Call& call) {
  if (!call.modifiers) return;
  AttentionInputs& in = call.in;
  const Modifiers& given = *call.modifiers;
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
  if (given.table || given.slopes) take_offsets(call);
}

// Which rows of q are asked about: their shape is the answer's.
void take_rows(Call& call, const py::object& rows) {
  if (rows.is_none()) return;
  call.q_rows = rows.cast<std::vector<std::int64_t>>();
  call.in.q_rows = call.q_rows.data();
  call.in.q_len = static_cast<std::int64_t>(call.q_rows.size());
}

using Extra = std::optional<py::tuple>;

void take_common(Call& call, const py::array& q, const py::array& k, const Extra& packing, const Extra& pages,
                 const PlanHandle* mask, const py::object& bias, const py::object& scale, const py::object& kv_lengths,
                 const Extra& modifiers, const py::object& threads) {
  if (packing)
    call.packed.emplace((*packing)[0].cast<std::vector<std::int64_t>>(), (*packing)[1].cast<std::vector<std::int64_t>>());
  if (pages)
    call.paged = Paged{(*pages)[0].cast<py::array_t<std::int32_t, py::array::c_style>>(), (*pages)[1].cast<std::int64_t>(),
                       (*pages)[2].cast<std::optional<Floats>>(), (*pages)[3].cast<std::optional<Floats>>()};
  if (modifiers)
    call.modifiers = Modifiers{(*modifiers)[0].cast<double>(), (*modifiers)[1].cast<std::optional<Doubles>>(),
                               (*modifiers)[2].cast<std::optional<Doubles>>(), (*modifiers)[3].cast<std::optional<Doubles>>()};
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

void take_values(Call& call, const py::array& k, const py::array& v) {
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

// True where the arrays' memory may overlap; strides may be negative.
bool may_overlap(const py::array& a, const py::array& b) {
  const auto extent = [](const py::array& x) {
    const char *low = static_cast<const char*>(x.data()), *high = low + x.itemsize();
    for (py::ssize_t axis = 0; axis < x.ndim(); ++axis) {
      if (x.shape(axis) == 0) return std::pair{low, low};
      const py::ssize_t reach = x.strides(axis) * (x.shape(axis) - 1);
      (reach < 0 ? low : high) += reach;
    }
    return std::pair{low, high};
  };
  const auto [a_low, a_high] = extent(a);
  const auto [b_low, b_high] = extent(b);
  return a_low < b_high && b_low < a_high;
}

py::array output_array(const py::object& out, const std::vector<std::int64_t>& shape, Dtype dtype,
                       std::initializer_list<std::pair<const char*, const py::array*>> inputs) {
  if (out.is_none()) return py::array(numpy_dtype(dtype), shape);
  py::array a = as_array(out, "out");
  if (dtype_of(a) != dtype)
    bad_type("out must have the dtype of q, " + std::string(py::str(numpy_dtype(dtype))) + ", got " +
             std::string(py::str(a.dtype())));
  if (a.ndim() != 4 || !std::equal(shape.begin(), shape.end(), a.shape()))
    bad_value("out must have shape " + shape_text(shape) + ", got " + describe(a));
  require_contiguous_rows(a, "out");
  if (!a.writeable()) bad_value("out must be writeable, got a read-only array; pass out.copy()");
  for (const auto& [name, input] : inputs)
    if (*input && may_overlap(a, *input))
      bad_value(std::string("out must not share memory with ") + name + "; pass another array");
  return a;
}

Dtype sum_dtype(const AttentionInputs& in) { return in.in_double() ? Dtype::float64 : Dtype::float32; }

py::object run_attention(const py::object& q_object, const py::object& k_object, const py::object& v_object, const Extra& packing,
                         const Extra& pages, const PlanHandle* mask, const py::object& bias, const py::object& scale,
                         const py::object& kv_lengths, const Extra& modifiers, bool return_lse, const py::object& out,
                         const py::object& threads) {
  const py::array q = as_array(q_object, "q"), k = as_array(k_object, "k"), v = as_array(v_object, "v");
  Call call;
  take_common(call, q, k, packing, pages, mask, bias, scale, kv_lengths, modifiers, threads);
  take_values(call, k, v);
  const AttentionInputs& in = call.in;
  py::array result = output_array(out, {call.sequences, in.q_heads, q.shape(2), in.v_head_dim}, in.q.dtype,
                                  {{"q", &q}, {"k", &k}, {"v", &v}, {"bias", &call.bias}});
  Rows<void> rows = rows_of(result, in.q.dtype, result.mutable_data()), lse_rows;
  std::optional<py::array> lse;
  if (return_lse) {
    using Shape = std::vector<py::ssize_t>;
    const py::dtype dtype = numpy_dtype(sum_dtype(in));
    lse.emplace(dtype, call.packed ? Shape{q.shape(2), in.q_heads} : Shape{in.batch, in.q_heads, in.q_len});
    lse_rows = {lse->mutable_data(), sum_dtype(in), {in.q_heads * in.q_len, in.q_len, 1}};
    if (call.packed) lse_rows = {lse->mutable_data(), sum_dtype(in), {0, 1, in.q_heads}, call.packed->q_starts.data()};
  }
  if (call.packed) {
    rows.stride[0] = 0;
    rows.starts = call.packed->q_starts.data();
  }
  {
    const py::gil_scoped_release unlocked;
    attention(in, rows, lse_rows);
  }
  if (lse) return py::make_tuple(result, *lse);
  return result;
}

py::array run_weights(const py::object& q_object, const py::object& k_object, const std::string& stage_name,
                      const py::object& rows, const Extra& pages, const PlanHandle* mask, const py::object& bias,
                      const py::object& scale, const py::object& kv_lengths, const Extra& modifiers, const py::object& threads) {
  const py::array q = as_array(q_object, "q"), k = as_array(k_object, "k");
  Call call;
  take_common(call, q, k, {}, pages, mask, bias, scale, kv_lengths, modifiers, threads);
  take_rows(call, rows);
  const Stage stage = stage_name == "softmax"   ? Stage::softmax
                      : stage_name == "bias"    ? Stage::bias
                      : stage_name == "softcap" ? Stage::softcap
                                                : Stage::scores;
  const AttentionInputs& in = call.in;
  py::array result(numpy_dtype(in.q.dtype), std::vector<std::int64_t>{in.batch, in.q_heads, in.q_len, in.kv_len});
  void* data = result.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    attention_weights(in, stage, in.q.dtype, data);
  }
  return result;
}

py::object run_largest(const py::object& q_object, const py::object& k_object, std::int64_t count, const py::object& rows,
                       const Extra& pages, const PlanHandle* mask, const py::object& bias, const py::object& scale,
                       const py::object& kv_lengths, const Extra& modifiers, const py::object& threads) {
  const py::array q = as_array(q_object, "q"), k = as_array(k_object, "k");
  Call call;
  take_common(call, q, k, {}, pages, mask, bias, scale, kv_lengths, modifiers, threads);
  take_rows(call, rows);
  const AttentionInputs& in = call.in;
  const std::vector<std::int64_t> shape = {in.batch, in.q_heads, in.q_len, count};
  py::array_t<std::int64_t> keys(shape);
  py::array weights(numpy_dtype(sum_dtype(in)), shape);
  std::int64_t* key_data = keys.mutable_data();
  void* weight_data = weights.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    largest_weights(in, count, key_data, weight_data);
  }
  return py::make_tuple(keys, weights);
}

py::array run_per_key(const py::object& q_object, const py::object& k_object, const Extra& pages, const PlanHandle* mask,
                      const py::object& bias, const py::object& scale, const py::object& kv_lengths, const Extra& modifiers,
                      const py::object& threads) {
  const py::array q = as_array(q_object, "q"), k = as_array(k_object, "k");
  Call call;
  take_common(call, q, k, {}, pages, mask, bias, scale, kv_lengths, modifiers, threads);
  const AttentionInputs& in = call.in;
  py::array sums(numpy_dtype(sum_dtype(in)), std::vector<std::int64_t>{in.batch, in.q_heads, in.kv_len});
  void* data = sums.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    weights_per_key(in, data);
  }
  return sums;
}

}  // namespace

void register_attention(py::module_& m) {
  m.def("attention", &run_attention);
  m.def("attention_weights", &run_weights);
  m.def("largest_weights", &run_largest);
  m.def("weights_per_key", &run_per_key);
}

}  // namespace maskattn
