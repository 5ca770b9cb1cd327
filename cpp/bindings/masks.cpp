#include "maskattn/mask.hpp"
#include "maskattn/mask_program.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>

#include "borrow.hpp"
#include "plans.hpp"

namespace maskattn {
namespace {

std::vector<MaskRef> refs(const std::vector<MaskHandle>& handles) {
  std::vector<MaskRef> masks;
  for (const auto& handle : handles) masks.push_back(handle.mask);
  return masks;
}

using Integers = py::array_t<std::int64_t, py::array::c_style>;
using Bools = py::array_t<bool, py::array::c_style>;

std::vector<std::int64_t> to_vector(const Integers& a) { return {a.data(), a.data() + a.size()}; }

// Arrays reach these functions as the Python classes have checked and shaped them.
MaskRef dense(const py::array& keep) {
  std::int64_t shape[4], strides[4];
  for (int axis = 0; axis < 4; ++axis) {
    shape[axis] = keep.shape(axis);
    strides[axis] = keep.strides(axis);
  }
  return mask_dense(static_cast<const bool*>(keep.data()), shape, strides);
}

// A Python function (b, h, q_begin, rows, kv_begin, keys) -> bool array (rows, keys), called with the GIL, which is released
// while a plan is made.
MaskRef tiles_from_python(py::function function, bool per_sequence, bool per_head) {
  const std::shared_ptr<py::function> held(new py::function(std::move(function)), [](py::function* f) {
    const py::gil_scoped_acquire locked;
    delete f;
  });
  const auto answer = [held](const MaskTile& tile, bool* keep) {
    const py::gil_scoped_acquire locked;
    const auto answers = (*held)(tile.b, tile.h, tile.q_begin, tile.rows, tile.kv_begin, tile.keys).cast<Bools>();
    if (answers.size() != tile.rows * tile.keys) bad_value("a mask function must answer for each pair");
    std::copy_n(answers.data(), answers.size(), keep);
  };
  return mask_tiles(answer, per_sequence, per_head);
}

// (steps as (n, 8) integers, data, the most spans of a row), or None for what has no program.
py::object program_of(const MaskHandle& handle) {
  const auto program = mask_program(handle.mask);
  if (!program) return py::none();
  const auto steps = static_cast<py::ssize_t>(program->steps.size()), words = static_cast<py::ssize_t>(sizeof(MaskStep) / 8);
  Integers rows({steps, words});
  std::memcpy(rows.mutable_data(), program->steps.data(), program->steps.size() * sizeof(MaskStep));
  return py::make_tuple(rows, Integers(static_cast<py::ssize_t>(program->data.size()), program->data.data()), program->spans);
}

}  // namespace

void register_masks(py::module_& m) {
  py::class_<MaskHandle>(m, "MaskExpr")
      .def_property_readonly("batch", [](const MaskHandle& h) { return mask_batch(h.mask); })
      .def_property_readonly("heads", [](const MaskHandle& h) { return mask_heads(h.mask); });
  m.def("mask_band",
        [](std::optional<std::int64_t> left, std::optional<std::int64_t> right) { return MaskHandle{mask_band(left, right)}; });
  m.def("mask_key_range",
        [](const Integers& begin, const Integers& end) { return MaskHandle{mask_key_range(to_vector(begin), to_vector(end))}; });
  m.def("mask_keys", [](const Bools& keep) { return MaskHandle{mask_keys(keep.data(), keep.shape(0), keep.shape(1))}; });
  m.def("mask_documents", [](const Integers& q_ids, const Integers& kv_ids) {
    return MaskHandle{mask_documents(q_ids.data(), q_ids.shape(1), kv_ids.data(), kv_ids.shape(1), q_ids.shape(0))};
  });
  m.def("mask_dense", [](const py::array& keep) { return MaskHandle{dense(keep)}; });
  m.def("mask_last_keys", [](const Integers& counts) { return MaskHandle{mask_last_keys(to_vector(counts))}; });
  m.def("mask_queries", [](const Bools& keep) { return MaskHandle{mask_queries(keep.data(), keep.shape(0), keep.shape(1))}; });
  m.def("mask_chunks", [](std::int64_t size, bool earlier) { return MaskHandle{mask_chunks(size, earlier)}; });
  m.def("mask_dilated", [](std::int64_t window, std::int64_t stride) { return MaskHandle{mask_dilated(window, stride)}; });
  m.def("mask_global_tokens", [](const Integers& at) { return MaskHandle{mask_global_tokens(to_vector(at))}; });
  m.def("mask_tree", [](const Integers& parents, std::optional<std::int64_t> start) {
    return MaskHandle{mask_tree(to_vector(parents), start)};
  });
  m.def("mask_block_sparse", [](const Bools& keep, std::int64_t size) {
    return MaskHandle{mask_block_sparse(keep.data(), {keep.shape(0), keep.shape(1), keep.shape(2), keep.shape(3)}, size)};
  });
  m.def("mask_neighborhood", [](std::pair<std::int64_t, std::int64_t> shape, std::pair<std::int64_t, std::int64_t> kernel) {
    return MaskHandle{mask_neighborhood({shape.first, shape.second}, {kernel.first, kernel.second})};
  });
  m.def("mask_block_diffusion",
        [](std::int64_t size, std::int64_t length) { return MaskHandle{mask_block_diffusion(size, length)}; });
  m.def("mask_function", [](std::uintptr_t function, std::uintptr_t data, bool per_sequence, bool per_head) {
    return MaskHandle{
        mask_function(reinterpret_cast<MaskFunction>(function), reinterpret_cast<void*>(data), per_sequence, per_head)};
  });
  m.def("mask_tiles", [](py::function function, bool per_sequence, bool per_head) {
    return MaskHandle{tiles_from_python(std::move(function), per_sequence, per_head)};
  });
  m.def("mask_compressed", [](const PlanHandle& plan, const Bools& rows, const Bools& keys) {
    return MaskHandle{mask_compressed(plan.get(), rows.data(), keys.data())};
  });
  m.def("mask_and", [](const std::vector<MaskHandle>& terms) { return MaskHandle{mask_and(refs(terms))}; });
  m.def("mask_or", [](const std::vector<MaskHandle>& terms) { return MaskHandle{mask_or(refs(terms))}; });
  m.def("mask_program", &program_of);
  m.def("mask_not", [](const MaskHandle& term) { return MaskHandle{mask_not(term.mask)}; });
}

}  // namespace maskattn
