// Large arrays on memory that earlier ones had.
#pragma once

#include <vector>

#include "borrow.hpp"

namespace maskattn {

// A new array. The kernel clears fresh memory page by page, which takes longer than to write it: so memory of arrays that are
// gone is kept for the next ones, up to 64 MiB of it. Small arrays are NumPy's own.
py::array recycled_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape);
std::size_t recyclable_bytes();  // that are kept

}  // namespace maskattn
