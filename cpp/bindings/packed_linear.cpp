#include "maskattn/packed_linear.hpp"

#include <memory>

#include <pybind11/stl.h>

#include "borrow.hpp"

namespace maskattn {
namespace {

constexpr const char* kNames[] = {"float32", "bfloat16", "int8"};

WeightType type_named(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == kNames[i]) return static_cast<WeightType>(i);
  bad_value("dtype must be 'float32', 'bfloat16' or 'int8', got '" + name + "'");
}

std::unique_ptr<PackedWeight> make(std::int64_t outputs, std::int64_t inputs, const std::string& dtype) {
  if (outputs < 1 || inputs < 1 || outputs > (std::int64_t{1} << 31) || inputs > (std::int64_t{1} << 24))
    bad_value("a packed weight must have from 1 up to 2**31 outputs and 2**24 inputs, got " + shape_text({outputs, inputs}));
  return std::make_unique<PackedWeight>(type_named(dtype), outputs, inputs);
}

void fill(PackedWeight& weight, std::int64_t first, const py::array_t<float>& rows) {
  require_contiguous_rows(rows, "rows");
  if (rows.ndim() != 2 || rows.shape(1) != weight.inputs() || first < 0 || rows.shape(0) > weight.outputs() - first)
    bad_value("rows must fit a weight of shape " + shape_text({weight.outputs(), weight.inputs()}) + " from row " +
              std::to_string(first) + " on, got " + describe(rows));
  const int threads = thread_count(py::none());
  const py::gil_scoped_release unlocked;
  weight.fill(first, rows.shape(0), rows.data(), rows.strides(0) / rows.itemsize(), threads);
}

py::array_t<float> rows_of(const PackedWeight& weight, const py::array_t<std::int64_t, py::array::c_style>& indices) {
  py::array_t<float> out({static_cast<std::int64_t>(indices.size()), weight.inputs()});
  for (py::ssize_t i = 0; i < indices.size(); ++i) {
    const std::int64_t index = indices.data()[i];
    if (index < 0 || index >= weight.outputs())
      bad_value("rows must be from 0 to " + std::to_string(weight.outputs() - 1) + ", got " + std::to_string(index));
    weight.row(index, out.mutable_data() + i * weight.inputs());
  }
  return out;
}

PackedWeight slice(const PackedWeight& weight, const py::slice& rows) {
  py::ssize_t start = 0, stop = 0, step = 0, count = 0;
  if (!rows.compute(weight.outputs(), &start, &stop, &step, &count)) throw py::error_already_set();
  if (step != 1 || count < 1) bad_value("rows of a packed weight must be a slice of step 1, not empty");
  return weight.slice(start, start + count);
}

// The rows of several weights as one, if they follow each other in one memory; else None.
py::object joined(const std::vector<const PackedWeight*>& parts) {
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < parts.size(); outputs += parts[i++]->outputs())
    if (i > 0 && !parts[i - 1]->followed_by(*parts[i])) return py::none();
  return py::cast(parts.front()->slice(0, outputs));
}

// x (rows, inputs) with contiguous rows, bias (outputs,) or None: shapes are linear.py's to check.
py::array_t<float> product(const PackedWeight& weight, const py::array_t<float>& x, const py::object& bias,
                           const py::object& threads) {
  require_contiguous_rows(x, "x");
  py::array_t<float, py::array::c_style> added;
  if (!bias.is_none()) added = bias.cast<py::array_t<float, py::array::c_style>>();
  py::array_t<float> out({x.shape(0), weight.outputs()});
  const PackedLinear call{&weight,
                          x.shape(0),
                          x.data(),
                          x.strides(0) / x.itemsize(),
                          bias.is_none() ? nullptr : added.data(),
                          out.mutable_data(),
                          weight.outputs(),
                          thread_count(threads)};
  {
    const py::gil_scoped_release unlocked;
    linear(call);
  }
  return out;
}

}  // namespace

void register_packed_linear(py::module_& m) {
  py::class_<PackedWeight>(m, "PackedWeight")
      .def(py::init(&make), py::arg("outputs"), py::arg("inputs"), py::arg("dtype"))
      .def_property_readonly("shape", [](const PackedWeight& w) { return py::make_tuple(w.outputs(), w.inputs()); })
      .def_property_readonly("dtype", [](const PackedWeight& w) { return kNames[static_cast<int>(w.type())]; })
      .def_property_readonly("ndim", [](const PackedWeight&) { return 2; })
      .def_property_readonly("nbytes", &PackedWeight::bytes)
      .def_static("joined", &joined, py::arg("parts"))
      .def("__getitem__", &slice, py::arg("rows"))
      .def("fill", &fill, py::arg("first"), py::arg("rows").noconvert())
      .def("rows", &rows_of, py::arg("indices"));
  m.def("packed_linear", &product, py::arg("weight"), py::arg("x").noconvert(), py::arg("bias"), py::arg("threads"));
}

}  // namespace maskattn
