// Arrays in the device's memory, as Python lends and gets them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "bindings/dlpack.hpp"
#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

namespace maskattn::cuda {

namespace py = pybind11;

// Strides are in elements. What `owner` holds keeps the memory; work on it is ordered on `stream`.
struct Array {
  void* data = nullptr;
  std::vector<std::int64_t> shape, strides;
  dlpack::DataType dtype{};
  int device = 0;
  bool read_only = false;
  Stream stream = nullptr;
  std::shared_ptr<void> owner;

  std::int64_t ndim() const { return static_cast<std::int64_t>(shape.size()); }
  std::int64_t item_bytes() const { return dtype.bits / 8; }
  std::int64_t size() const;
  bool contiguous() const;
  std::string dtype_name() const;
  std::string describe() const;  // "float32 array of shape (1, 2, 3)"
};

// Memory of its own, in C order.
Array new_array(std::vector<std::int64_t> shape, dlpack::DataType dtype, Stream stream);
// By NumPy's names, bfloat16 included; TypeError for others.
dlpack::DataType dtype_named(const std::string& name);
// float32, float16 or bfloat16; TypeError for others.
Dtype float_dtype_of(const Array& a, const char* name);

// What uses these arrays, some of which may be null, has been launched: what comes next on their own streams, as the end of their
// memory, waits for it.
void let_go(std::initializer_list<const Array*> arrays, Stream stream);

inline Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<Stream>(handle); }

[[noreturn]] void bad_value(const std::string& text);
[[noreturn]] void bad_type(const std::string& text);
std::string shape_text(const std::vector<std::int64_t>& shape);

void register_arrays(py::module_& m);
void register_attention(py::module_& m);
void register_cache(py::module_& m, py::class_<Array>& array);
void register_merge(py::module_& m);
void register_exchange(py::module_& m, py::class_<Array>& array);
void register_packing(py::module_& m);
void register_plans(py::module_& m);
void register_weights(py::module_& m);

}  // namespace maskattn::cuda
