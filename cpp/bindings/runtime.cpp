#include "maskattn/runtime.hpp"

#include <pybind11/stl.h>

#include "borrow.hpp"

namespace maskattn {

void register_runtime(py::module_& m) {
  m.def("built_isas", &built_isas);
  m.def("runnable_isas", &runnable_isas);
  m.def("current_isa", &current_isa);
  m.def("set_isa", &set_isa);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", [](const py::object& count) {
    if (count.is_none()) bad_type("threads must be an integer, got None");
    set_num_threads(thread_count(count));
  });
  m.def("has_openmp", &has_openmp);
  m.def("default_precision", [] { return static_cast<int>(default_precision()); });
  m.def("set_default_precision", [](int level) { set_default_precision(static_cast<Precision>(level)); });
  m.def("multiply_add", &multiply_add, py::call_guard<py::gil_scoped_release>());
}

}  // namespace maskattn
