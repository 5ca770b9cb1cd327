// Arrays from Python, borrowed: never copied, never converted. Errors read: name, wanted, got, remedy.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "maskattn/attention.hpp"
#include "maskattn/elementwise.hpp"

namespace maskattn {

namespace py = pybind11;

void register_attention(py::module_& m);
void register_layer_stack(py::module_& m);
void register_dlpack(py::module_& m);
void register_elementwise(py::module_& m);
void register_linear(py::module_& m);
void register_masks(py::module_& m);
void register_packed_linear(py::module_& m);
void register_prepared(py::module_& m);
void register_plans(py::module_& m);
void register_runtime(py::module_& m);

// "float32 array of shape (1, 2, 3)", or the type's name.
std::string describe(const py::handle& object);
std::string shape_text(const std::vector<std::int64_t>& shape);

template <class T>
bool has_dtype(const py::array& a) {
  const py::dtype dtype = a.dtype();
  return dtype.num() == py::dtype::num_of<T>() && dtype.byteorder() == '=';  // '=': the machine's own byte order
}

// The dtype that the core knows the array's by, in the machine's byte order; none for others.
std::optional<Dtype> dtype_of(const py::array& a);
// float32, float64, float16 or bfloat16; TypeError for others.
Dtype float_dtype_of(const py::array& a, const char* name);
py::dtype numpy_dtype(Dtype dtype);

// `object` as an array, not converted; TypeError for anything else.
py::array as_array(const py::handle& object, const char* name);
void require_contiguous_rows(const py::array& a, const char* name);

// A Python integer (anything with __index__); TypeError for another type, ValueError past 64 bits.
std::int64_t integer(const py::object& object, const char* name);
// A Python number; TypeError for another type.
double number(const py::object& object, const char* name);
// int64 values of a scalar or one-dimensional integer array-like: 1 value or `batch` of them.
std::vector<std::int64_t> integers_per_sequence(const py::object& object, const char* name, std::int64_t batch);

int thread_count(const py::object& threads);
Activation activation_named(const std::string& name);  // ValueError for an unknown one

[[noreturn]] void bad_value(const std::string& text);
[[noreturn]] void bad_type(const std::string& text);

}  // namespace maskattn
