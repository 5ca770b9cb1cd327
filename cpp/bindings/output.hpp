// Where results go.
#pragma once

#include <array>
#include <initializer_list>
#include <utility>

#include "borrow.hpp"

namespace maskattn {

struct NamedInput {
  const char* name;
  const py::object& array;  // may be null
};

// `out`, checked, or a new array where it is None.
py::array output_array(const py::object& out, const std::array<std::int64_t, 4>& shape, Dtype dtype,
                       std::initializer_list<NamedInput> inputs);

}  // namespace maskattn
