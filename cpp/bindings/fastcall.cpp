#include "fastcall.hpp"

namespace maskattn {

void add_fastcall(py::module_& m, const char* name, Fastcall function) {
  auto* method = new PyMethodDef{};  // the function refers to it for as long as the interpreter lives
  method->ml_name = name;
  method->ml_meth = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
  method->ml_flags = METH_FASTCALL;
  m.add_object(name, py::reinterpret_steal<py::object>(PyCFunction_NewEx(method, nullptr, m.attr("__name__").ptr())));
}

}  // namespace maskattn
