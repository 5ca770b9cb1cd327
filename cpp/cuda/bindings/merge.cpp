// merge_states from Python.
#include "cuda/merge.hpp"

#include <algorithm>

#include "cuda/bindings/array.hpp"

namespace maskattn::cuda {
namespace {

AttentionState state_of(const Array& out, const char* out_name, const Array& lse, const char* lse_name) {
  AttentionState state{out.data, lse.data, float_dtype_of(out, out_name), float_dtype_of(lse, lse_name), {}, {}};
  std::copy(out.strides.begin(), out.strides.end(), state.out_stride);
  std::copy(lse.strides.begin(), lse.strides.end(), state.lse_stride);
  return state;
}

void check_states(const Array& out_a, const Array& lse_a, const Array& out_b, const Array& lse_b) {
  if (out_a.ndim() < 1 || out_a.ndim() > kMostMergeAxes)
    bad_value("out_a must have from 1 to " + std::to_string(kMostMergeAxes) + " axes on CUDA, got " + out_a.describe());
  const std::vector<std::int64_t> rows(out_a.shape.begin(), out_a.shape.end() - 1);
  const auto require = [&](const Array& a, const char* name, const std::vector<std::int64_t>& shape) {
    if (a.shape != shape)
      bad_value(std::string(name) + " must have shape " + shape_text(shape) + ", as out_a of shape " + shape_text(out_a.shape) +
                " asks for, got " + shape_text(a.shape));
  };
  require(lse_a, "lse_a", rows);
  require(out_b, "out_b", out_a.shape);
  require(lse_b, "lse_b", rows);
  state_of(out_a, "out_a", lse_a, "lse_a"), state_of(out_b, "out_b", lse_b, "lse_b");
}

// Of arrays that have been checked; `out` and `lse` are in C order.
void merge(const Array& out_a, const Array& lse_a, const Array& out_b, const Array& lse_b, const Array& out, const Array& lse,
           std::uintptr_t handle) {
  const Stream stream = stream_of(handle);
  MergeCall call{state_of(out_a, "out_a", lse_a, "lse_a"),
                 state_of(out_b, "out_b", lse_b, "lse_b"),
                 static_cast<int>(out_a.ndim()),
                 {},
                 out.data,
                 lse.data};
  std::copy(out_a.shape.begin(), out_a.shape.end(), call.extent);
  merge_states(call, stream);
  let_go({&out_a, &lse_a, &out_b, &lse_b, &out, &lse}, stream);
}

}  // namespace

void register_merge(py::module_& m) {
  m.def("check_states", &check_states);
  m.def("merge_states", &merge);
}

}  // namespace maskattn::cuda
