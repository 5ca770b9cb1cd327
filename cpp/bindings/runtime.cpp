#include "maskattn/runtime.hpp"

#include <pybind11/stl.h>

#include "../core/dispatch.hpp"
#include "../core/threads.hpp"
#include "borrow.hpp"

namespace maskattn {
namespace {

// Of float32, on each of `threads` threads; the number of multiplications and additions.
double multiply_add(std::int64_t rounds, int threads) {
  const auto& table = kernel_table<float>();
  py::gil_scoped_release release;
  parallel_for(threads, threads, [&](std::int64_t) {
    float sums[kProbeChains] = {};
    table.multiply_add(rounds, sums);
  });
  return 2.0 * static_cast<double>(rounds) * table.lanes * kProbeChains * threads;
}

}  // namespace

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
  m.def("multiply_add", &multiply_add);
}

}  // namespace maskattn
