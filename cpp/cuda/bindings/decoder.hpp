// The decoder's half of the module: arrays, stacks of layers and heads on a device, on a stream of their own.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/decoder/layer_stack.hpp"

namespace maskattn::cuda {

namespace py = pybind11;

using DevicePointer = std::shared_ptr<DecoderDevice>;
using Ints = py::array_t<int, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// An array in C order. Nobody holds the GIL while waiting for a turn on the device.
class DeviceArray {
 public:
  DeviceArray(DevicePointer device, std::vector<std::int64_t> shape, py::dtype dtype, Dtype kind);
  ~DeviceArray();
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  const std::vector<std::int64_t>& shape() const { return shape_; }
  int extent(std::size_t axis) const { return static_cast<int>(shape_.at(axis)); }
  const py::dtype& dtype() const { return dtype_; }
  Dtype kind() const { return kind_; }
  std::size_t bytes() const;
  void* data() const { return memory_->data(); }
  float* floats() const;  // TypeError unless it is float32

  // Elements from number `first` of the array on.
  void write(std::int64_t first, const py::array& values);
  py::array numpy() const;
  // Rows of an array (n, width); row -1 is zeros.
  std::unique_ptr<DeviceArray> gathered(const Ints& rows) const;
  // Of a pool (pages, heads, page_size, dim): the first `slots` rows of pages, copied to others.
  void copy_pages_within(const Ints& sources, const Ints& targets, int slots);
  // `count` elements of another array, from number `first` on, become those from number `at` on.
  void copy_from(std::int64_t at, const DeviceArray& other, std::int64_t first, std::int64_t count);

 private:
  Stream stream() const { return device_->stream.get(); }

  DevicePointer device_;
  std::vector<std::int64_t> shape_;
  py::dtype dtype_;
  Dtype kind_;
  std::unique_ptr<DeviceMemory> memory_;
};

std::unique_ptr<DeviceArray> new_floats(const DevicePointer& device, std::int64_t rows, std::int64_t width);
// By NumPy's names, of which bfloat16 is not known to pybind11; TypeError for others.
Dtype dtype_of(const py::dtype& dtype);
// What Python promises by construction, lest a slip there becomes an access out of bounds here.
inline void require(bool right, const char* text) {
  if (!right) throw py::value_error(text);
}

void register_device_arrays(py::module_& m);
void register_device_stacks(py::module_& m);
void register_device_heads(py::module_& m);

}  // namespace maskattn::cuda
