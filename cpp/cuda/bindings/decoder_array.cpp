#include "cuda/bindings/decoder.hpp"

#include <pybind11/stl.h>

#include "cuda/decoder/elementwise.hpp"

namespace maskattn::cuda {

Dtype dtype_of(const py::dtype& dtype) {
  const auto name = dtype.attr("name").cast<std::string>();
  if (name == "float32") return Dtype::float32;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw py::type_error("dtype must be float32, bfloat16 or float16 on a device, got " + name);
}

std::unique_ptr<DeviceArray> new_floats(const DevicePointer& device, std::int64_t rows, std::int64_t width) {
  return std::make_unique<DeviceArray>(device, std::vector<std::int64_t>{rows, width}, py::dtype::of<float>(), Dtype::float32);
}

DeviceArray::DeviceArray(DevicePointer device, std::vector<std::int64_t> shape, py::dtype dtype, Dtype kind)
    : device_(std::move(device)), shape_(std::move(shape)), dtype_(std::move(dtype)), kind_(kind) {
  const py::gil_scoped_release unlocked;
  const Turn turn(*device_);
  memory_ = std::make_unique<DeviceMemory>(bytes(), stream());
}

DeviceArray::~DeviceArray() {
  const py::gil_scoped_release unlocked;
  try {
    const Turn turn(*device_);
    memory_.reset();
  } catch (...) {
    // An earlier error of the device, which the next call reports.
  }
}

std::size_t DeviceArray::bytes() const {
  std::size_t product = size_of(kind_);
  for (const std::int64_t extent : shape_) product *= static_cast<std::size_t>(extent);
  return product;
}

float* DeviceArray::floats() const {
  if (kind_ != Dtype::float32) throw py::type_error("the array must be float32 on the device");
  return memory_->data<float>();
}

void DeviceArray::write(std::int64_t first, const py::array& values) {
  const auto count = static_cast<std::size_t>(values.nbytes()), at = static_cast<std::size_t>(first) * size_of(kind_);
  require(values.dtype().equal(dtype_) && (values.flags() & py::array::c_style) && at + count <= bytes(),
          "values must be a contiguous array of the same dtype that fits");
  const void* from = values.data();
  const py::gil_scoped_release unlocked;
  const Turn turn(*device_);
  copy(memory_->data<char>() + at, from, count, stream());
  synchronize(stream());
}

py::array DeviceArray::numpy() const {
  py::array values(dtype_, shape_);
  void* to = values.mutable_data();
  const py::gil_scoped_release unlocked;
  const Turn turn(*device_);
  if (bytes() > 0) copy(to, data(), bytes(), stream());
  synchronize(stream());
  return values;
}

std::unique_ptr<DeviceArray> DeviceArray::gathered(const Ints& rows) const {
  require(shape_.size() == 2, "rows are gathered of an array (n, width)");
  for (py::ssize_t i = 0; i < rows.size(); ++i)
    require(rows.data()[i] >= -1 && rows.data()[i] < shape_[0], "rows must be there, or -1");
  auto made = std::make_unique<DeviceArray>(device_, std::vector<std::int64_t>{rows.size(), shape_[1]}, dtype_, kind_);
  const py::gil_scoped_release unlocked;
  const Turn turn(*device_);
  const auto count = static_cast<std::size_t>(rows.size()) * sizeof(int);
  const DeviceMemory names(count, stream());
  if (count > 0) send(names.data(), rows.data(), count, stream());
  gather(static_cast<int>(rows.size()), extent(1), static_cast<int>(size_of(kind_)), data(), names.data<int>(), made->data(),
         stream());
  return made;
}

void DeviceArray::copy_pages_within(const Ints& sources, const Ints& targets, int slots) {
  require(shape_.size() == 4 && sources.size() == targets.size() && slots <= shape_[2],
          "pages must be copied one to one, up to page_size slots");
  const py::gil_scoped_release unlocked;
  const Turn turn(*device_);
  const auto count = static_cast<std::size_t>(sources.size());
  if (count == 0 || slots == 0) return;
  const DeviceMemory names(2 * count * sizeof(int), stream());
  int* on_device = names.data<int>();
  send(on_device, sources.data(), count * sizeof(int), stream());
  send(on_device + count, targets.data(), count * sizeof(int), stream());
  copy_pages({data(), extent(1), extent(2), extent(3), static_cast<int>(size_of(kind_))}, static_cast<int>(count), on_device,
             on_device + count, slots, stream());
}

void DeviceArray::copy_from(std::int64_t at, const DeviceArray& other, std::int64_t first, std::int64_t count) {
  const auto item = static_cast<std::int64_t>(size_of(kind_));
  const auto fits = [&](const DeviceArray& a, std::int64_t from) {
    return from >= 0 && count <= static_cast<std::int64_t>(a.bytes()) / item - from;
  };
  require(&other != this && kind_ == other.kind_ && count >= 0 && fits(*this, at) && fits(other, first),
          "elements must be there in both arrays, which must be two of one dtype");
  const py::gil_scoped_release unlocked;
  const Turn turn(*device_);
  if (count == 0) return;
  copy(static_cast<char*>(data()) + at * item, static_cast<const char*>(other.data()) + first * item,
       static_cast<std::size_t>(count * item), stream());
}

void register_device_arrays(py::module_& m) {
  py::class_<DecoderDevice, DevicePointer>(m, "DecoderDevice")
      .def(py::init([](int id, const std::vector<std::string>& libraries) {
             const OnDevice current(id);
             return std::make_shared<DecoderDevice>(libraries);
           }),
           py::arg("id"), py::arg("libraries"));
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(py::init([](const DevicePointer& device, const std::vector<std::int64_t>& shape, const py::dtype& dtype) {
             return std::make_unique<DeviceArray>(device, shape, dtype, dtype_of(dtype));
           }),
           py::arg("device"), py::arg("shape"), py::arg("dtype"))
      .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape())); })
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("nbytes", &DeviceArray::bytes)
      .def("write", &DeviceArray::write, py::arg("first"), py::arg("values"))
      .def("numpy", &DeviceArray::numpy)
      .def("__array__", [](const DeviceArray& a, const py::args&, const py::kwargs&) { return a.numpy(); })
      .def("__getitem__", [](const DeviceArray& a, const py::object& key) { return a.numpy().attr("__getitem__")(key); })
      .def("gathered", &DeviceArray::gathered, py::arg("rows"))
      .def("copy_pages", &DeviceArray::copy_pages_within, py::arg("sources"), py::arg("targets"), py::arg("slots"))
      .def("copy_from", &DeviceArray::copy_from, py::arg("at"), py::arg("other"), py::arg("first"), py::arg("count"));
}

}  // namespace maskattn::cuda
