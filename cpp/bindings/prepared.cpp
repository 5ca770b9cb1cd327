// A call whose arguments are checked, and whose mask is lowered, once: each use looks at its arrays and computes.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>

#include "call.hpp"
#include "fastcall.hpp"
#include "maskattn/runtime.hpp"
#include "output.hpp"

namespace maskattn {
namespace {

using Shape = std::array<std::int64_t, 4>;

// What an array must be, as the example was.
struct Wanted {
  const char* name = "";
  Dtype dtype{};
  Shape shape{};

  Wanted() = default;
  Wanted(const char* name, const py::array& example)
      : name(name), dtype(*dtype_of(example)), shape{example.shape(0), example.shape(1), example.shape(2), example.shape(3)} {}

  std::string text() const { return std::string(py::str(numpy_dtype(dtype))) + " " + shape_text({shape.begin(), shape.end()}); }

  Rows<const void> take(const py::object& given) const {
    const py::array a = as_array(given, name);
    const bool same_dtype = dtype_of(a) == dtype;
    if (!same_dtype || a.ndim() != 4 || !std::equal(shape.begin(), shape.end(), a.shape())) {
      const std::string wrong = std::string(name) + " must be " + text() + ", as the call was prepared for, got " + describe(a) +
                                "; prepare another call";
      same_dtype ? bad_value(wrong) : bad_type(wrong);
    }
    require_contiguous_rows(a, name);
    return rows_of(a, dtype, a.data());
  }
};

class PreparedAttention {
 public:
  PreparedAttention(const py::object& q_object, const py::object& k_object, const py::object& v_object, const PlanHandle* mask,
                    const py::object& bias, const py::object& scale, const py::object& kv_lengths, const Extra& modifiers,
                    bool return_lse, const py::object& threads)
      : return_lse_(return_lse) {
    const py::array q = as_array(q_object, "q"), k = as_array(k_object, "k"), v = as_array(v_object, "v");
    take_common(call_, q, k, {}, {}, mask, bias, scale, kv_lengths, modifiers, threads);
    take_values(call_, k, v);
    wanted_ = {Wanted("q", q), Wanted("k", k), Wanted("v", v)};
    if (!threads.is_none()) threads_ = call_.in.threads;
  }

  py::object operator()(const py::object& q, const py::object& k, const py::object& v, const py::object& out,
                        const py::object& kv_lengths) const {
    // Of this thread, and kept between its calls: nothing is allocated once they are long enough.
    static thread_local std::vector<std::int64_t> lengths, offsets;
    AttentionInputs in = call_.in;
    in.q = wanted_[0].take(q);
    in.k = wanted_[1].take(k);
    in.v = wanted_[2].take(v);
    in.threads = threads_ ? *threads_ : num_threads();
    if (!kv_lengths.is_none()) {
      if (in.mask)
        bad_value(
            "kv_lengths must be left out where the call was prepared with a mask or q_offset, lowered for the lengths that "
            "it then had; prepare another call, or one without them");
      take_lengths(in, kv_lengths, lengths);
      if (in.q_offset) take_offsets(in, offsets);
    }
    py::array result = output_array(out, {in.batch, in.q_heads, in.q_len, in.v_head_dim}, in.q.dtype,
                                    {{"q", q}, {"k", k}, {"v", v}, {"bias", call_.bias}});
    py::object lse = py::none();
    Rows<void> lse_rows;
    if (return_lse_) {
      py::array made(numpy_dtype(sum_dtype(in)), std::array<std::int64_t, 3>{in.batch, in.q_heads, in.q_len});
      lse_rows = {made.mutable_data(), sum_dtype(in), {in.q_heads * in.q_len, in.q_len, 1}};
      lse = made;
    }
    const Rows<void> rows = rows_of(result, in.q.dtype, result.mutable_data());
    {
      const py::gil_scoped_release unlocked;
      attention(in, rows, lse_rows);
    }
    if (return_lse_) return py::make_tuple(result, lse);
    return result;
  }

  std::string text() const {
    std::string text = "<maskattn call prepared for ";
    for (const Wanted& wanted : wanted_)
      text += std::string(wanted.name) + " " + wanted.text() + (wanted.name[0] == 'v' ? "" : ", ");
    return text + ">";
  }

 private:
  AttentionCall call_;  // without arrays: their examples are not kept
  std::array<Wanted, 3> wanted_;
  bool return_lse_;
  std::optional<int> threads_;
};

// What an instance of the Python class has behind pybind11's part: its vectorcall function, and what that is to call.
struct Tail {
  vectorcallfunc function;
  const PreparedAttention* prepared;
};
Py_ssize_t tail_offset = 0;
Tail& tail_of(PyObject* self) { return *reinterpret_cast<Tail*>(reinterpret_cast<char*>(self) + tail_offset); }

constexpr const char* kNames[] = {"q", "k", "v", "out", "kv_lengths"};
constexpr std::size_t kPositional = 3;

[[noreturn]] void bad_call(const std::string& what) {
  bad_type("a prepared call takes q, k, v and, by name, out and kv_lengths; got " + what);
}

PyObject* call_prepared(PyObject* self, PyObject* const* args, std::size_t flags, PyObject* names) {
  return as_python([&]() -> py::object {
    std::array<py::object, 5> given;
    const std::size_t count = static_cast<std::size_t>(PyVectorcall_NARGS(flags));
    if (count > kPositional) bad_call(std::to_string(count) + " positional arguments");
    for (std::size_t i = 0; i < count; ++i) given[i] = py::reinterpret_borrow<py::object>(args[i]);
    const Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    for (Py_ssize_t i = 0; i < named; ++i) {
      PyObject* name = PyTuple_GET_ITEM(names, i);
      std::size_t at = 0;
      while (at < given.size() && PyUnicode_CompareWithASCIIString(name, kNames[at]) != 0) ++at;
      if (at == given.size()) bad_call("'" + std::string(py::str(name)) + "'");
      if (given[at]) bad_call(std::string(kNames[at]) + " twice");
      given[at] = py::reinterpret_borrow<py::object>(args[count + static_cast<std::size_t>(i)]);
    }
    for (std::size_t i = 0; i < given.size(); ++i) {
      if (given[i]) continue;
      if (i < kPositional) bad_call(std::string("no ") + kNames[i]);
      given[i] = py::none();
    }
    return (*tail_of(self).prepared)(given[0], given[1], given[2], given[3], given[4]);
  });
}

void make_callable(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  tail_offset = type.tp_basicsize;
  type.tp_basicsize += static_cast<Py_ssize_t>(sizeof(Tail));
  type.tp_vectorcall_offset = tail_offset + static_cast<Py_ssize_t>(offsetof(Tail, function));
  type.tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
  type.tp_call = PyVectorcall_Call;
}

py::object prepare(const py::object& q, const py::object& k, const py::object& v, const PlanHandle* mask, const py::object& bias,
                   const py::object& scale, const py::object& kv_lengths, const Extra& modifiers, bool return_lse,
                   const py::object& threads) {
  auto prepared = std::make_unique<PreparedAttention>(q, k, v, mask, bias, scale, kv_lengths, modifiers, return_lse, threads);
  const PreparedAttention* target = prepared.get();
  py::object object = py::cast(std::move(prepared));
  tail_of(object.ptr()) = {call_prepared, target};
  return object;
}

}  // namespace

void register_prepared(py::module_& m) {
  py::class_<PreparedAttention>(m, "PreparedAttention", py::is_final(), py::custom_type_setup(make_callable))
      .def("__repr__", &PreparedAttention::text);
  m.def("prepare_attention", &prepare);
}

}  // namespace maskattn
