#include "output.hpp"

#include <algorithm>
#include <vector>

namespace maskattn {
namespace {

struct Extent {
  const char *low, *high;

  explicit Extent(const py::array& a) : low(static_cast<const char*>(a.data())), high(low + a.itemsize()) {
    for (py::ssize_t axis = 0; axis < a.ndim(); ++axis) {
      const py::ssize_t count = a.shape()[axis], reach = a.strides()[axis] * (count - 1);  // strides may be negative
      if (count == 0) {
        high = low;
        return;
      }
      (reach < 0 ? low : high) += reach;
    }
  }
  bool may_overlap(const Extent& other) const { return low < other.high && other.low < high; }
};

}  // namespace

py::array output_array(const py::object& out, const std::array<std::int64_t, 4>& shape, Dtype dtype,
                       std::initializer_list<NamedInput> inputs) {
  if (out.is_none()) return py::array(numpy_dtype(dtype), shape);
  py::array a = as_array(out, "out");
  if (dtype_of(a) != dtype)
    bad_type("out must have the dtype of q, " + std::string(py::str(numpy_dtype(dtype))) + ", got " +
             std::string(py::str(a.dtype())));
  if (a.ndim() != 4 || !std::equal(shape.begin(), shape.end(), a.shape()))
    bad_value("out must have shape " + shape_text({shape.begin(), shape.end()}) + ", got " + describe(a));
  require_contiguous_rows(a, "out");
  if (!a.writeable()) bad_value("out must be writeable, got a read-only array; pass out.copy()");
  const Extent mine(a);
  for (const auto& [name, input] : inputs)
    if (input && mine.may_overlap(Extent(py::reinterpret_borrow<py::array>(input))))
      bad_value(std::string("out must not share memory with ") + name + "; pass another array");
  return a;
}

}  // namespace maskattn
