#include "maskattn/attention.hpp"

#include <pybind11/stl.h>

#include <algorithm>

#include "call.hpp"

namespace maskattn {
namespace {

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
  AttentionCall call;
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
  AttentionCall call;
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
  AttentionCall call;
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
  AttentionCall call;
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
