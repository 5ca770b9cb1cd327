#include "borrow.hpp"

#include <algorithm>

#include "maskattn/runtime.hpp"

namespace maskattn {

void bad_value(const std::string& text) { throw py::value_error(text); }
void bad_type(const std::string& text) { throw py::type_error(text); }

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i) text += ", ";
    text += std::to_string(shape[i]);
  }
  text += shape.size() == 1 ? ",)" : ")";
  return text;
}

std::string describe(const py::handle& object) {
  if (!py::isinstance<py::array>(object)) return py::str(py::type::handle_of(object).attr("__name__"));
  const auto a = py::reinterpret_borrow<py::array>(object);
  return std::string(py::str(a.dtype())) + " array of shape " + shape_text({a.shape(), a.shape() + a.ndim()});
}

namespace {

// NumPy numbers the types of other packages as they are imported: bfloat16 is known by ml_dtypes' own.
const py::dtype& bfloat16() {
  static const auto* dtype = new py::dtype(py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")));
  return *dtype;
}

constexpr int kHalf = 23;  // NPY_HALF

}  // namespace

std::optional<Dtype> dtype_of(const py::array& a) {
  const py::dtype dtype = a.dtype();
  const int number = dtype.num();
  if (dtype.itemsize() > 1 && dtype.byteorder() != '=') return {};
  if (number == py::dtype::num_of<float>()) return Dtype::float32;
  if (number == py::dtype::num_of<double>()) return Dtype::float64;
  if (number == kHalf) return Dtype::float16;
  if (number == py::dtype::num_of<std::int8_t>()) return Dtype::int8;
  if (dtype.itemsize() == 2 && dtype.kind() == 'V' && number == bfloat16().num()) return Dtype::bfloat16;
  return {};
}

Dtype float_dtype_of(const py::array& a, const char* name) {
  const auto dtype = dtype_of(a);
  if (!dtype || *dtype == Dtype::int8)
    bad_type(std::string(name) + " must be float32, float16, bfloat16 or float64, got " + std::string(py::str(a.dtype())) +
             "; pass " + name + ".astype(np.float32)");
  return *dtype;
}

py::dtype numpy_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32: return py::dtype::of<float>();
    case Dtype::float64: return py::dtype::of<double>();
    case Dtype::float16: return py::dtype(kHalf);
    case Dtype::bfloat16: return bfloat16();
    case Dtype::int8: break;
  }
  return py::dtype::of<std::int8_t>();
}

py::array as_array(const py::handle& object, const char* name) {
  if (!py::isinstance<py::array>(object))
    bad_type(std::string(name) + " must be a NumPy array, got " + describe(object) + "; pass np.asarray(" + name + ")");
  return py::reinterpret_borrow<py::array>(object);
}

void require_contiguous_rows(const py::array& a, const char* name) {
  if (a.ndim() == 0) bad_value(std::string(name) + " must have rows, got an array without axes; pass " + name + "[None]");
  const py::ssize_t *shape = a.shape(), *strides = a.strides(), last = a.ndim() - 1, item = a.itemsize();
  if (std::find(shape, shape + last + 1, 0) != shape + last + 1) return;  // its strides mean nothing
  if (shape[last] > 1 && strides[last] != item)
    bad_value(std::string(name) + " must have a contiguous last axis, got a stride of " + std::to_string(strides[last]) +
              " bytes; pass np.ascontiguousarray(" + name + ")");
  for (py::ssize_t axis = 0; axis < last; ++axis)
    if (strides[axis] % item != 0)
      bad_value(std::string(name) + " must have strides that are multiples of its item size " + std::to_string(item) + ", got " +
                std::to_string(strides[axis]) + " bytes; pass np.ascontiguousarray(" + name + ")");
}

std::int64_t integer(const py::object& object, const char* name) {
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) {
    PyErr_Clear();
    bad_type(std::string(name) + " must be an integer, got " + describe(object));
  }
  int overflow = 0;
  const std::int64_t value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow) bad_value(std::string(name) + " must fit in 64 bits, got " + std::string(py::str(object)));
  return value;
}

double number(const py::object& object, const char* name) {
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    bad_type(std::string(name) + " must be a number, got " + describe(object));
  }
  return value;
}

std::vector<std::int64_t> integers_per_sequence(const py::object& object, const char* name, std::int64_t batch) {
  if (py::isinstance<py::int_>(object)) return {integer(object, name)};
  const py::array any = py::array::ensure(object);
  if (!any || (any.dtype().kind() != 'i' && any.dtype().kind() != 'u'))
    bad_type(std::string(name) + " must be an integer or an integer array of shape (batch,), got " + describe(object));
  if (any.ndim() > 1 || (any.ndim() == 1 && any.shape(0) != 1 && any.shape(0) != batch))
    bad_value(std::string(name) + " must be an integer or have shape (" + std::to_string(batch) + ",), got " + describe(any));
  const auto values = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(any);
  return {values.data(), values.data() + values.size()};
}

int thread_count(const py::object& threads) {
  if (threads.is_none()) return num_threads();
  const std::int64_t count = integer(threads, "threads");
  if (count < 1 || count > 4096) bad_value("threads must be from 1 to 4096, got " + std::to_string(count));
  return static_cast<int>(count);
}

}  // namespace maskattn
