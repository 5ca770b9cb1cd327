#include "maskattn/elementwise.hpp"

#include <pybind11/stl.h>

#include <optional>

#include "borrow.hpp"

namespace maskattn {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

// A float32 array as it is, or a contiguous copy.
Floats contiguous(const py::object& object, const char* name) {
  const py::array a = as_array(object, name);
  if (!has_dtype<float>(a))
    bad_type(std::string(name) + " must be float32, got " + describe(a) + "; pass " + name + ".astype(np.float32)");
  return Floats::ensure(a);
}

// x as rows, and a new array with `width` elements for each.
RowsOf rows_of(const Floats& x, std::int64_t width, Floats& out, const py::object& threads) {
  if (x.ndim() < 1) bad_value("x must have an axis, got shape ()");
  std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  const std::int64_t x_width = shape.back();
  shape.back() = width;
  out = Floats(shape);
  return {x_width ? x.size() / x_width : 0, width, x.data(), x_width, out.mutable_data(), width, thread_count(threads)};
}

void check_width(const Floats& x, const Floats& weight, const char* name) {
  if (weight.ndim() != 1 || x.ndim() < 1 || weight.shape(0) != x.shape(x.ndim() - 1))
    bad_value(std::string(name) + " must have one value per element of x's last axis, got " + describe(weight) +
              " for x of shape " + shape_text({x.shape(), x.shape() + x.ndim()}));
}

Floats layer_norm_of(const py::object& array, const Floats& weight, const std::optional<Floats>& bias, float eps,
                     const py::object& threads) {
  const Floats x = contiguous(array, "x");
  check_width(x, weight, "weight");
  if (bias) check_width(x, *bias, "bias");
  Floats out;
  const RowsOf call = rows_of(x, weight.shape(0), out, threads);
  const py::gil_scoped_release unlocked;
  layer_norm(call, weight.data(), bias ? bias->data() : nullptr, eps);
  return out;
}

Floats rms_norm_of(const py::object& array, const Floats& weight, float eps, const py::object& threads) {
  const Floats x = contiguous(array, "x");
  check_width(x, weight, "weight");
  Floats out;
  const RowsOf call = rows_of(x, weight.shape(0), out, threads);
  const py::gil_scoped_release unlocked;
  rms_norm(call, weight.data(), eps);
  return out;
}

Floats activate_of(const std::string& name, const py::object& array, bool gated, const py::object& threads) {
  const Activation function = activation_named(name);
  const Floats x = contiguous(array, "x");
  const std::int64_t width = x.ndim() < 1 ? 0 : x.shape(x.ndim() - 1);
  if (gated && width % 2) bad_value("x must have an even last axis, got " + describe(x));
  Floats out;
  const RowsOf call = rows_of(x, gated ? width / 2 : width, out, threads);
  const py::gil_scoped_release unlocked;
  activate(call, function, gated);
  return out;
}

}  // namespace

Activation activation_named(const std::string& name) {
  constexpr const char* kNames[] = {"relu", "silu", "gelu", "gelu_tanh", "quick_gelu", "tanh"};
  for (int i = 0; i < 6; ++i)
    if (name == kNames[i]) return static_cast<Activation>(i);
  bad_value("activation must be relu, silu, gelu, gelu_tanh, quick_gelu or tanh, got '" + name + "'");
}

void register_elementwise(py::module_& m) {
  m.def("layer_norm", &layer_norm_of, py::arg("x"), py::arg("weight").noconvert(), py::arg("bias").noconvert(), py::arg("eps"),
        py::arg("threads"));
  m.def("rms_norm", &rms_norm_of, py::arg("x"), py::arg("weight").noconvert(), py::arg("eps"), py::arg("threads"));
  m.def("activate", &activate_of, py::arg("function"), py::arg("x"), py::arg("gated"), py::arg("threads"));
}

}  // namespace maskattn
