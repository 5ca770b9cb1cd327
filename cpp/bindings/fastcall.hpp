// Functions for the smallest calls, by CPython's own conventions: pybind11's argument loading alone takes half a microsecond.
#pragma once

#include <exception>
#include <new>

#include "borrow.hpp"

namespace maskattn {

// What `body` returns, or its C++ exception as Python's.
template <class Body>
PyObject* as_python(const Body& body) noexcept {
  try {
    return body().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

using Fastcall = PyObject* (*)(PyObject* self, PyObject* const* args, Py_ssize_t count);

// A function of the module that takes positional arguments only.
void add_fastcall(py::module_& m, const char* name, Fastcall function);

}  // namespace maskattn
