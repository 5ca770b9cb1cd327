// Arrays that other libraries lend by DLPack or by the CUDA array interface, and ours lent to them.
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "cuda/bindings/array.hpp"
#include "cuda/runtime.hpp"

namespace maskattn::cuda {
namespace {

using dlpack::ManagedTensor;
using dlpack::ManagedTensorVersioned;

constexpr std::uintptr_t kLegacyStream = 1;  // what DLPack, the CUDA array interface and the runtime call the default stream

// Waits for a stream where that is possible, with other threads of Python running: what the stream waits for may need them.
void wait_quietly(int device, Stream stream) {
  std::optional<py::gil_scoped_release> unlocked;
  if (Py_IsInitialized() && PyGILState_Check()) unlocked.emplace();
  try {
    const OnDevice current(device);
    if (!capturing(stream)) synchronize(stream);
  } catch (...) {
    // An earlier error of the device, which the next call reports.
  }
}

// Until the capsule is renamed it is the producer's, who calls the deleter when it dies; from then on the array's owner does. It
// waits before that where the producer `reuses` memory at once, whatever streams of others do.
template <class Managed>
Array adopt(const py::capsule& capsule, const std::string& name, bool read_only, Stream stream, bool reuses) {
  auto* const managed = capsule.get_pointer<Managed>();
  const dlpack::Tensor& tensor = managed->tensor;
  if (tensor.device.type != dlpack::CUDA && tensor.device.type != dlpack::CUDAManaged)
    bad_value(name + " must be a CUDA array, got one on DLPack's device type " + std::to_string(tensor.device.type) +
              "; move it to the device of q");
  Array a;
  a.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  a.dtype = tensor.dtype;
  a.device = tensor.device.id;
  a.read_only = read_only;
  a.stream = stream;
  a.data = tensor.data ? static_cast<char*>(tensor.data) + tensor.byte_offset : nullptr;
  a.strides.resize(a.shape.size());
  std::int64_t step = 1;
  for (std::size_t axis = a.shape.size(); axis-- > 0; step *= a.shape[axis])
    a.strides[axis] = tensor.strides ? tensor.strides[axis] : step;
  if (!a.data && a.size() != 0) bad_value(name + " must have memory, got a DLPack tensor whose data is null");
  a.owner = std::shared_ptr<void>(managed, [device = a.device, stream, reuses](void* pointer) {
    auto* const lent = static_cast<Managed*>(pointer);
    if (reuses) wait_quietly(device, stream);
    if (lent->deleter) lent->deleter(lent);
  });
  PyCapsule_SetName(capsule.ptr(), Managed::used_name);
  return a;
}

// The array of a fresh capsule, made ready by its library for work on the stream.
Array from_dlpack(const py::object& object, const std::string& name, std::uintptr_t stream, bool reuses) {
  if (PyCapsule_IsValid(object.ptr(), ManagedTensorVersioned::name)) {
    const auto capsule = py::reinterpret_borrow<py::capsule>(object);
    const auto* managed = capsule.get_pointer<ManagedTensorVersioned>();
    if (managed->version.major != 1)
      bad_value(name + " must come as DLPack 0 or 1, got version " + std::to_string(managed->version.major));
    return adopt<ManagedTensorVersioned>(capsule, name, managed->flags & (dlpack::read_only_flag | dlpack::copied_flag),
                                         stream_of(stream), reuses);
  }
  // Without flags nobody knows. JAX lends its immutable arrays so, PyTorch ones that may be written.
  if (PyCapsule_IsValid(object.ptr(), ManagedTensor::name))
    return adopt<ManagedTensor>(py::reinterpret_borrow<py::capsule>(object), name, false, stream_of(stream), reuses);
  bad_type(name + "'s __dlpack__ must return an unused DLPack capsule, got " + std::string(py::repr(object)));
}

dlpack::DataType dtype_of(const std::string& typestr, const std::string& name) {
  const std::pair<char, dlpack::TypeCode> kinds[] = {
      {'f', dlpack::Float}, {'i', dlpack::Int}, {'u', dlpack::UInt}, {'b', dlpack::Bool}};
  if (typestr.size() >= 3 && typestr[0] != '>')
    for (const auto& [kind, code] : kinds)
      if (typestr[1] == kind) return {code, static_cast<std::uint8_t>(8 * std::stoi(typestr.substr(2))), 1};
  bad_type(name + " must have a dtype of numbers or bool in this machine's byte order, got " + typestr);
}

// The array that an object's __cuda_array_interface__ describes; the object lives as long as the array.
Array from_interface(const py::dict& interface, const py::object& object, const std::string& name, int device,
                     std::uintptr_t stream) {
  Array a;
  a.dtype = dtype_of(interface["typestr"].cast<std::string>(), name);
  a.shape = interface["shape"].cast<std::vector<std::int64_t>>();
  const auto [pointer, read_only] = interface["data"].cast<std::pair<std::uintptr_t, bool>>();
  a.data = reinterpret_cast<void*>(pointer);
  a.read_only = read_only;
  a.device = device;
  a.stream = stream_of(stream);
  if (interface.contains("mask") && !interface["mask"].is_none()) bad_value(name + " must not have a mask of missing elements");
  a.strides.resize(a.shape.size());
  std::int64_t step = 1;
  for (std::size_t axis = a.shape.size(); axis-- > 0; step *= a.shape[axis]) a.strides[axis] = step;
  if (interface.contains("strides") && !interface["strides"].is_none()) {
    const auto bytes = interface["strides"].cast<std::vector<std::int64_t>>();
    for (std::size_t axis = 0; axis < bytes.size(); ++axis) {
      if (bytes[axis] % a.item_bytes() != 0) bad_value(name + " must have strides of whole elements");
      a.strides[axis] = bytes[axis] / a.item_bytes();
    }
  }
  if (interface["version"].cast<int>() >= 3 && interface.contains("stream") && !interface["stream"].is_none())
    wait_for(a.stream, stream_of(interface["stream"].cast<std::uintptr_t>()));
  a.owner = std::shared_ptr<void>(new py::object(object), [](void* held) {
    if (!Py_IsInitialized()) return;
    const py::gil_scoped_acquire locked;
    delete static_cast<py::object*>(held);
  });
  return a;
}

template <class Managed>
struct Loan {
  Managed managed{};
  Array array;
};

template <class Managed>
void end_loan(Managed* managed) {
  delete static_cast<Loan<Managed>*>(managed->context);  // an array's owner knows itself what it needs to end
}

template <class Managed>
void end_unused_loan(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, Managed::name)) end_loan(static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::name)));
}

template <class Managed>
py::object lend(const Array& array, const dlpack::Version* version) {
  auto loan = std::make_unique<Loan<Managed>>();
  loan->array = array;
  Array& a = loan->array;
  loan->managed.context = loan.get();
  loan->managed.deleter = &end_loan<Managed>;
  loan->managed.tensor = {
      a.data, {dlpack::CUDA, a.device}, static_cast<std::int32_t>(a.ndim()), a.dtype, a.shape.data(), a.strides.data(), 0};
  if constexpr (requires { loan->managed.version; }) {
    loan->managed.version = *version;
    loan->managed.flags = a.read_only ? dlpack::read_only_flag : 0;
  }
  auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(&loan->managed, Managed::name, &end_unused_loan<Managed>));
  if (!capsule) throw py::error_already_set();
  loan.release();
  return capsule;
}

// `stream` is the borrower's: what was launched on ours until now comes first. None is the default stream, -1 asks for no order.
py::object dlpack_of(const Array& a, std::optional<std::int64_t> stream, std::optional<std::pair<int, int>> max_version,
                     std::optional<std::pair<int, int>> device, std::optional<bool> copied) {
  if (device && *device != std::pair<int, int>(dlpack::CUDA, a.device))
    throw py::buffer_error("the array is on cuda:" + std::to_string(a.device) + " and stays there");
  if (copied.value_or(false)) throw py::buffer_error("the array is lent as it is, not copied");
  if (stream.value_or(1) != -1) {
    const OnDevice current(a.device);
    wait_for(stream_of(static_cast<std::uintptr_t>(stream.value_or(kLegacyStream))), a.stream);
  }
  const dlpack::Version version{1, 1};
  if (max_version && max_version->first >= 1) return lend<ManagedTensorVersioned>(a, &version);
  return lend<ManagedTensor>(a, nullptr);
}

}  // namespace

void register_exchange(py::module_& m, py::class_<Array>& array) {
  m.def("from_dlpack", &from_dlpack, py::arg("object"), py::arg("name"), py::arg("stream"), py::arg("reuses") = false);
  m.def("from_interface", &from_interface);
  array
      .def("__dlpack__", &dlpack_of, py::kw_only(), py::arg("stream") = py::none(), py::arg("max_version") = py::none(),
           py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
      .def("__dlpack_device__", [](const Array& a) { return std::pair<int, int>(dlpack::CUDA, a.device); });
}

}  // namespace maskattn::cuda
