#include "cuda/bindings/array.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "cuda/plan_build.hpp"
#include "cuda/runtime.hpp"

namespace maskattn::cuda {
namespace {

struct DtypeRow {
  const char* name;
  dlpack::DataType type;
};
constexpr DtypeRow dtype_rows[] = {
    {"float32", {dlpack::Float, 32, 1}}, {"float16", {dlpack::Float, 16, 1}}, {"bfloat16", {dlpack::Bfloat, 16, 1}},
    {"float64", {dlpack::Float, 64, 1}}, {"bool", {dlpack::Bool, 8, 1}},      {"uint8", {dlpack::UInt, 8, 1}},
    {"int8", {dlpack::Int, 8, 1}},       {"int32", {dlpack::Int, 32, 1}},     {"int64", {dlpack::Int, 64, 1}},
};

// A contiguous NumPy array of the same dtype, copied to the device in the order of the stream.
Array to_device(const py::array& host, const std::string& dtype, std::uintptr_t stream) {
  Array a = new_array({host.shape(), host.shape() + host.ndim()}, dtype_named(dtype), stream_of(stream));
  if (host.nbytes() != a.size() * a.item_bytes() || !(host.flags() & py::array::c_style))
    bad_value("host must be a C-contiguous array of " + dtype);
  if (!a.data) return a;
  const void* data = host.data();
  const auto bytes = static_cast<std::size_t>(host.nbytes());
  const py::gil_scoped_release unlocked;
  upload(a.data, data, bytes, a.stream);
  return a;
}

// Into a contiguous NumPy array, waited for.
void to_host(const Array& a, py::array& host, std::uintptr_t stream) {
  if (host.nbytes() != a.size() * a.item_bytes() || !(host.flags() & py::array::c_style) || !a.contiguous())
    bad_value("host must be a C-contiguous array of the device array's size");
  if (a.size() == 0) return;
  void* data = host.mutable_data();
  const py::gil_scoped_release unlocked;
  const OnDevice current(a.device);
  copy(data, a.data, static_cast<std::size_t>(a.size() * a.item_bytes()), stream_of(stream));
  synchronize(stream_of(stream));
}

// The CUDA array interface has no name for bfloat16, and hasattr() must say so.
py::dict interface_of(const Array& a) {
  static constexpr const char* kinds[] = {"i", "u", "f"};
  if (a.dtype.code == dlpack::Bfloat) {
    PyErr_SetString(PyExc_AttributeError, "the CUDA array interface has no type for bfloat16; use DLPack");
    throw py::error_already_set();
  }
  const std::string kind = a.dtype.code == dlpack::Bool ? "|b" : std::string("<") + kinds[a.dtype.code];
  std::vector<std::int64_t> strides;
  for (const std::int64_t stride : a.strides) strides.push_back(stride * a.item_bytes());
  py::dict interface;
  interface["shape"] = py::tuple(py::cast(a.shape));
  interface["strides"] = py::tuple(py::cast(strides));
  interface["typestr"] = kind + std::to_string(a.item_bytes());
  interface["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(a.data), a.read_only);
  interface["version"] = 3;
  const auto handle = reinterpret_cast<std::uintptr_t>(a.stream);
  interface["stream"] = handle == 0 ? 1 : handle;  // 0 means nothing there
  return interface;
}

}  // namespace

std::int64_t Array::size() const {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

bool Array::contiguous() const {
  std::int64_t step = 1;
  for (std::size_t axis = shape.size(); axis-- > 0; step *= shape[axis])
    if (shape[axis] > 1 && strides[axis] != step) return false;
  return true;
}

std::string Array::dtype_name() const {
  for (const DtypeRow& row : dtype_rows)
    if (row.type.code == dtype.code && row.type.bits == dtype.bits && dtype.lanes == 1) return row.name;
  return "DLPack's type code " + std::to_string(dtype.code) + " with " + std::to_string(dtype.bits) + " bits";
}

std::string Array::describe() const { return dtype_name() + " array of shape " + shape_text(shape); }

Array new_array(std::vector<std::int64_t> shape, dlpack::DataType dtype, Stream stream) {
  Array a;
  a.strides.resize(shape.size());
  std::int64_t step = 1;
  for (std::size_t axis = shape.size(); axis-- > 0; step *= shape[axis]) a.strides[axis] = step;
  a.shape = std::move(shape);
  a.dtype = dtype;
  a.device = current_device();
  a.stream = stream;
  const auto memory = std::make_shared<DeviceMemory>(static_cast<std::size_t>(a.size() * a.item_bytes()), stream);
  a.data = memory->data();
  a.owner = memory;
  return a;
}

dlpack::DataType dtype_named(const std::string& name) {
  for (const DtypeRow& row : dtype_rows)
    if (row.name == name) return row.type;
  bad_type("dtype must be float32, float16, bfloat16, float64, bool, uint8, int8, int32 or int64 on CUDA, got " + name);
}

Dtype float_dtype_of(const Array& a, const char* name) {
  if (a.dtype.lanes == 1 && a.dtype.code == dlpack::Float && a.dtype.bits == 32) return Dtype::float32;
  if (a.dtype.lanes == 1 && a.dtype.code == dlpack::Float && a.dtype.bits == 16) return Dtype::float16;
  if (a.dtype.lanes == 1 && a.dtype.code == dlpack::Bfloat && a.dtype.bits == 16) return Dtype::bfloat16;
  bad_type(std::string(name) + " must be float32, float16 or bfloat16 on CUDA, got " + a.dtype_name() + "; convert it first");
}

void let_go(std::initializer_list<const Array*> arrays, Stream stream) {
  if (capturing(stream)) return;  // nobody knows when a graph runs
  for (const Array* each : arrays)
    if (each) wait_for(each->stream, stream);
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t axis = 0; axis < shape.size(); ++axis) text += (axis ? ", " : "") + std::to_string(shape[axis]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

void bad_value(const std::string& text) { throw py::value_error(text); }
void bad_type(const std::string& text) { throw py::type_error(text); }

void register_arrays(py::module_& m) {
  py::class_<Array> array(m, "Array");
  array.def_property_readonly("shape", [](const Array& a) { return py::tuple(py::cast(a.shape)); })
      .def_property_readonly("strides", [](const Array& a) { return py::tuple(py::cast(a.strides)); })
      .def_property_readonly("dtype", &Array::dtype_name)
      .def_property_readonly("ndim", &Array::ndim)
      .def_property_readonly("size", &Array::size)
      .def_property_readonly("nbytes", [](const Array& a) { return a.size() * a.item_bytes(); })
      .def_property_readonly("device", [](const Array& a) { return a.device; })
      .def_property_readonly("stream", [](const Array& a) { return reinterpret_cast<std::uintptr_t>(a.stream); })
      .def_property_readonly("pointer", [](const Array& a) { return reinterpret_cast<std::uintptr_t>(a.data); })
      .def_property_readonly("contiguous", &Array::contiguous)
      .def_property_readonly("read_only", [](const Array& a) { return a.read_only; })
      .def_property_readonly("__cuda_array_interface__", &interface_of)
      .def("__repr__", [](const Array& a) { return "<" + a.describe() + " on cuda:" + std::to_string(a.device) + ">"; });
  register_exchange(m, array);
  register_cache(m, array);
  m.def("empty", [](std::vector<std::int64_t> shape, const std::string& dtype, std::uintptr_t stream) {
    return new_array(std::move(shape), dtype_named(dtype), stream_of(stream));
  });
  m.def("to_device", &to_device);
  m.def("to_host", &to_host);
  m.def("device_count", &device_count);
  m.def("set_device", &set_device);
  m.def("current_device", &current_device);
  m.def("device_of", [](std::uintptr_t pointer) { return device_of(reinterpret_cast<const void*>(pointer)); });
  m.def("wait_for", [](std::uintptr_t later, std::uintptr_t earlier) { wait_for(stream_of(later), stream_of(earlier)); });
  m.def("synchronize", [](std::uintptr_t stream) {
    const py::gil_scoped_release unlocked;
    synchronize(stream_of(stream));
  });
}

}  // namespace maskattn::cuda
