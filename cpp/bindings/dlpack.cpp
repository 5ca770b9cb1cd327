// Arrays that other libraries lend by DLPack, and NumPy arrays lent to them; no element is copied.
#include "dlpack.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "borrow.hpp"

namespace maskattn {
namespace {

using namespace dlpack;

struct DtypeRow {
  TypeCode code;
  std::uint8_t bits;
  const char* name;  // NumPy's: its kind and bytes
};

constexpr DtypeRow dtype_rows[] = {
    {Float, 32, "f4"}, {Float, 64, "f8"}, {Float, 16, "f2"},   {Bool, 8, "b1"},       {Int, 8, "i1"},
    {Int, 16, "i2"},   {Int, 32, "i4"},   {Int, 64, "i8"},     {UInt, 8, "u1"},       {UInt, 16, "u2"},
    {UInt, 32, "u4"},  {UInt, 64, "u8"},  {Complex, 64, "c8"}, {Complex, 128, "c16"},
};

py::dtype bfloat16() { return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")); }

py::dtype numpy_dtype(const DataType& type, const std::string& name) {
  if (type.lanes == 1) {
    for (const DtypeRow& row : dtype_rows)
      if (row.code == type.code && row.bits == type.bits) return py::dtype(std::string(row.name));
    if (type.code == Bfloat && type.bits == 16) return bfloat16();
  }
  bad_type(name + " must have a dtype of NumPy's or bfloat16, got DLPack's type code " + std::to_string(type.code) + " with " +
           std::to_string(type.bits) + " bits and " + std::to_string(type.lanes) + " lanes; convert it in its own library");
}

DataType dlpack_dtype(const py::dtype& dtype) {
  const char order = dtype.byteorder();
  if (order == '=' || order == '|') {
    for (const DtypeRow& row : dtype_rows)
      if (row.name[0] == dtype.kind() && row.bits == 8 * dtype.itemsize()) return {row.code, row.bits, 1};
    constexpr int first_user_defined = 256;
    if (dtype.num() >= first_user_defined && dtype.equal(bfloat16())) return {Bfloat, 16, 1};
  }
  throw py::buffer_error("DLPack has no type for the dtype " + std::string(py::str(dtype)));
}

std::string device_name(std::int32_t type) {
  switch (type) {
    case CUDA:
    case CUDAManaged: return "a CUDA array";
    case Metal: return "a Metal array";
    case ROCM: return "a ROCm array";
    default: return "an array on DLPack's device type " + std::to_string(type);
  }
}

// NotImplementedError unless the CPU can read the device's memory; pinned memory is the CPU's.
void require_host(const std::string& name, std::int32_t device_type) {
  if (device_type == CPU || device_type == CUDAHost || device_type == ROCMHost) return;
  PyErr_SetString(PyExc_NotImplementedError, (name + " must be a NumPy array or in the CPU's memory for this function, got " +
                                              device_name(device_type) + "; copy it to the host (PyTorch: .cpu())")
                                                 .c_str());
  throw py::error_already_set();
}

// Whether an array is in a CUDA device's memory.
bool is_cuda(const py::object& object) {
  if (object.is_none() || py::isinstance<py::array>(object)) return false;
  if (!py::hasattr(object, "__dlpack_device__")) return py::hasattr(object, "__cuda_array_interface__");
  const auto type = object.attr("__dlpack_device__")().cast<std::pair<std::int32_t, std::int32_t>>().first;
  return type == CUDA || type == CUDAManaged;
}

// Until the capsule is renamed it is the producer's, who calls the deleter when it dies; from then on the array's base does.
template <class Managed>
py::array adopt(const py::capsule& capsule, const std::string& name, bool read_only) {
  auto* const managed = capsule.get_pointer<Managed>();
  const Tensor& tensor = managed->tensor;
  require_host(name, tensor.device.type);
  const py::dtype dtype = numpy_dtype(tensor.dtype, name);
  const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<py::ssize_t> strides;  // none: C order
  if (tensor.strides)
    for (int axis = 0; axis < tensor.ndim; ++axis) strides.push_back(tensor.strides[axis] * dtype.itemsize());
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  if (!tensor.data && !empty) bad_value(name + " must have memory, got a DLPack tensor whose data is null; pass a NumPy array");

  const py::capsule owner(managed, [](void* pointer) {
    auto* const lent = static_cast<Managed*>(pointer);
    if (lent->deleter) lent->deleter(lent);
  });
  PyCapsule_SetName(capsule.ptr(), Managed::used_name);
  char* const data = tensor.data ? static_cast<char*>(tensor.data) + tensor.byte_offset : nullptr;
  py::array array(dtype, shape, strides, data, owner);
  if (read_only) py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

// The array that a fresh capsule of `__dlpack__` describes; `name` is for errors.
py::array from_dlpack(const py::object& object, const std::string& name) {
  if (PyCapsule_IsValid(object.ptr(), ManagedTensorVersioned::name)) {
    const auto capsule = py::reinterpret_borrow<py::capsule>(object);
    const auto* managed = capsule.get_pointer<ManagedTensorVersioned>();
    if (managed->version.major != 1)  // the rest of the struct may look different
      bad_value(name + " must come as DLPack 0 or 1, got version " + std::to_string(managed->version.major) +
                "; pass a NumPy array");
    // What is written to a copy does not reach the array that was passed.
    return adopt<ManagedTensorVersioned>(capsule, name, managed->flags & (read_only_flag | copied_flag));
  }
  // Without flags nobody knows; JAX lends its immutable arrays so.
  if (PyCapsule_IsValid(object.ptr(), ManagedTensor::name))
    return adopt<ManagedTensor>(py::reinterpret_borrow<py::capsule>(object), name, true);
  bad_type(name + "'s __dlpack__ must return an unused DLPack capsule, got " + std::string(py::repr(object)));
}

// A NumPy array as others take it; NumPy itself does not lend bfloat16.
struct Exporter {
  py::array array;
};

template <class Managed>
struct Loan {
  Managed managed{};
  py::array array;
  std::vector<std::int64_t> shape, strides;
};

// Whoever borrows may let go on any thread, without the GIL, or after Python's end: then there is nothing left to free.
template <class Managed>
void end_loan(Managed* managed) {
  if (!Py_IsInitialized()) return;
  const py::gil_scoped_acquire locked;
  const py::error_scope pending;  // the array may die while an exception is on its way
  delete static_cast<Loan<Managed>*>(managed->context);
}

template <class Managed>
void end_unused_loan(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, Managed::name)) end_loan(static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::name)));
}

template <class Managed>
std::unique_ptr<Loan<Managed>> lend(const py::array& array) {
  auto loan = std::make_unique<Loan<Managed>>();
  loan->array = array;
  const DataType dtype = dlpack_dtype(array.dtype());
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    if (array.strides(axis) % array.itemsize() != 0) throw py::buffer_error("DLPack counts strides in whole elements");
    loan->shape.push_back(array.shape(axis));
    loan->strides.push_back(array.strides(axis) / array.itemsize());
  }
  loan->managed.context = loan.get();
  loan->managed.deleter = &end_loan<Managed>;
  loan->managed.tensor = {const_cast<void*>(array.data()),
                          {CPU, 0},
                          static_cast<std::int32_t>(array.ndim()),
                          dtype,
                          loan->shape.data(),
                          loan->strides.data(),
                          0};
  return loan;
}

template <class Managed>
py::object to_capsule(std::unique_ptr<Loan<Managed>> loan) {
  auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(&loan->managed, Managed::name, &end_unused_loan<Managed>));
  if (!capsule) throw py::error_already_set();
  loan.release();
  return capsule;
}

// `stream` means nothing for the CPU's memory.
py::object dlpack_of(const Exporter& exporter, const py::object& /*stream*/, std::optional<std::pair<int, int>> max_version,
                     std::optional<std::pair<int, int>> device, std::optional<bool> copy) {
  if (device && *device != std::pair<int, int>(CPU, 0)) throw py::buffer_error("the array is on the CPU and stays there");
  const bool copied = copy.value_or(false);
  const py::array array = copied ? exporter.array.attr("copy")().cast<py::array>() : exporter.array;
  const bool versioned = max_version && max_version->first >= 1;
  if (versioned) {
    auto loan = lend<ManagedTensorVersioned>(array);
    loan->managed.version = {1, 1};
    loan->managed.flags = (array.writeable() ? 0 : read_only_flag) | (copied ? copied_flag : 0);
    return to_capsule(std::move(loan));
  }
  if (!array.writeable()) throw py::buffer_error("DLPack before 1.0 cannot say that an array is read-only");
  return to_capsule(lend<ManagedTensor>(array));
}

}  // namespace

void register_dlpack(py::module_& m) {
  m.def("from_dlpack", &from_dlpack, py::arg("capsule"), py::arg("name"));
  m.def("is_cuda", &is_cuda);
  m.def("require_host", &require_host, py::arg("name"), py::arg("device_type"));
  py::class_<Exporter>(m, "Exporter")
      .def(py::init<py::array>(), py::arg("array"))
      .def("__dlpack__", &dlpack_of, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
           py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Exporter&) { return std::pair<int, int>(CPU, 0); });
}

}  // namespace maskattn
