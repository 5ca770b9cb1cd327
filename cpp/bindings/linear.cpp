#include "maskattn/linear.hpp"

#include "borrow.hpp"

namespace maskattn {
namespace {

using Floats = py::array_t<float>;

// x (rows, inputs) and weight (outputs, inputs) with contiguous rows, bias (outputs,) or None: shapes are linear.py's to check.
Floats product(const Floats& x, const Floats& weight, const py::object& bias, const py::object& threads) {
  require_contiguous_rows(x, "x");
  require_contiguous_rows(weight, "weight");
  Linear<float> call{x.shape(0),
                     x.shape(1),
                     weight.shape(0),
                     x.data(),
                     x.strides(0) / x.itemsize(),
                     weight.data(),
                     weight.strides(0) / weight.itemsize(),
                     nullptr,
                     nullptr,
                     weight.shape(0),
                     thread_count(threads)};
  py::array_t<float, py::array::c_style> added;
  if (!bias.is_none()) {
    added = bias.cast<py::array_t<float, py::array::c_style>>();
    call.bias = added.data();
  }
  Floats out({call.rows, call.outputs});
  call.out = out.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    linear(call);
  }
  return out;
}

}  // namespace

void register_linear(py::module_& m) {
  m.def("linear", &product, py::arg("x").noconvert(), py::arg("weight").noconvert(), py::arg("bias"), py::arg("threads"));
}

}  // namespace maskattn
