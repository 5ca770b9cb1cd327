#include "maskattn/attention.hpp"

#include <pybind11/stl.h>

#include "call.hpp"
#include "fastcall.hpp"
#include "output.hpp"

namespace maskattn {
namespace {

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
                                  {{"q", q}, {"k", k}, {"v", v}, {"bias", call.bias}});
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

// The shortest way for most calls: arrays of NumPy's, no mask, bias or modifiers. NotImplemented where an array is another
// library's, or k a cache's layer.
PyObject* run_plain(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return as_python([&]() -> py::object {
    if (count != 8) bad_type("attention_plain must have 8 arguments, got " + std::to_string(count));
    py::object given[8];
    for (int i = 0; i < 8; ++i) given[i] = py::reinterpret_borrow<py::object>(args[i]);
    const auto& [q, k, v, scale, kv_lengths, return_lse, out, threads] = given;
    const auto is_array = [](const py::object& object) { return py::isinstance<py::array>(object); };
    if (!is_array(q) || !is_array(k) || !is_array(v) || !(out.is_none() || is_array(out)))
      return py::reinterpret_borrow<py::object>(Py_NotImplemented);
    return run_attention(q, k, v, {}, {}, nullptr, py::none(), scale, kv_lengths, {}, py::cast<bool>(return_lse), out, threads);
  });
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
  add_fastcall(m, "attention_plain", run_plain);
  m.def("attention_weights", &run_weights);
  m.def("largest_weights", &run_largest);
  m.def("weights_per_key", &run_per_key);
}

}  // namespace maskattn
