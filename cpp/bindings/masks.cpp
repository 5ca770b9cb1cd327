#include "maskattn/mask.hpp"

#include <pybind11/stl.h>

#include <cstring>

#include "borrow.hpp"

namespace maskattn {
namespace {

// What Python holds: an immutable expression.
struct MaskHandle {
  MaskRef mask;
};

std::vector<MaskRef> refs(const std::vector<MaskHandle>& handles) {
  std::vector<MaskRef> masks;
  for (const auto& handle : handles) masks.push_back(handle.mask);
  return masks;
}

constexpr std::int64_t kFarthest = std::int64_t{1} << 62;  // positions: room to add lengths and windows

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

// A Python function (b, h, q_pos, keys) -> uint8 array of packed bits, called with the GIL, which the lowering threads lack.
MaskRef rows_from_python(py::function function, bool per_sequence, bool per_head) {
  const std::shared_ptr<py::function> held(new py::function(std::move(function)), [](py::function* f) {
    const py::gil_scoped_acquire locked;
    delete f;
  });
  const auto fill = [held](std::int64_t b, std::int64_t h, std::int64_t q, std::int64_t keys, std::uint64_t* words) {
    const py::gil_scoped_acquire locked;
    const auto bits = (*held)(b, h, q, keys).cast<py::array_t<std::uint8_t, py::array::c_style>>();
    if (bits.size() != (keys + 7) / 8) bad_value("a mask function must answer for each key");
    std::memcpy(words, bits.data(), static_cast<std::size_t>(bits.size()));  // little-endian: bit j of byte i is key 8 i + j
  };
  return mask_rows(fill, per_sequence, per_head);
}

std::shared_ptr<MaskPlan> make_plan(const MaskHandle& handle, const py::object& q_length, const py::object& kv_length,
                                    const py::object& sequences, const py::object& head_count, const py::object& q_offset,
                                    const py::object& kv_lengths, const py::object& threads) {
  const std::int64_t q_len = integer(q_length, "q_len"), kv_len = integer(kv_length, "kv_len");
  const std::int64_t batch = integer(sequences, "batch"), heads = integer(head_count, "heads");
  for (const auto& [name, value] : {std::pair{"q_len", q_len}, {"kv_len", kv_len}, {"batch", batch}, {"heads", heads}})
    if (value < 0) bad_value(std::string(name) + " must be at least 0, got " + std::to_string(value));
  Geometry geometry{batch, heads, q_len, kv_len, {}, {kv_len}};
  if (!kv_lengths.is_none()) geometry.kv_lengths = integers_per_sequence(kv_lengths, "kv_lengths", batch);
  for (const std::int64_t length : geometry.kv_lengths)
    if (length < 0 || length > kv_len)
      bad_value("kv_lengths must be from 0 to kv_len = " + std::to_string(kv_len) + ", got " + std::to_string(length));
  if (q_offset.is_none())
    for (const std::int64_t length : geometry.kv_lengths) geometry.q_offset.push_back(length - q_len);
  else
    geometry.q_offset = integers_per_sequence(q_offset, "q_offset", batch);
  for (const std::int64_t offset : geometry.q_offset)
    if (offset < -kFarthest || offset > kFarthest)
      bad_value("q_offset must be from -2**62 to 2**62, got " + std::to_string(offset));
  const int count = thread_count(threads);
  const py::gil_scoped_release unlocked;
  return std::make_shared<MaskPlan>(handle.mask, std::move(geometry), count);
}

void fill(const MaskPlan& plan, py::array& out, std::uint64_t shown, std::uint64_t hidden, const py::object& threads) {
  void* data = out.mutable_data();
  const auto item = static_cast<std::size_t>(out.itemsize());
  const int count = thread_count(threads);
  const py::gil_scoped_release unlocked;
  fill_from_plan(plan, data, item, shown, hidden, count);
}

// True where `given` is None or the same value for every sequence as the plan's.
bool same(const py::object& given, const char* name, const std::vector<std::int64_t>& mine, std::int64_t batch) {
  if (given.is_none()) return true;
  const auto values = integers_per_sequence(given, name, batch);
  const auto at = [](const std::vector<std::int64_t>& v, std::size_t b) { return v[v.size() == 1 ? 0 : b]; };
  for (std::size_t b = 0; b < std::max(values.size(), mine.size()); ++b)
    if (at(values, b) != at(mine, b)) return false;
  return true;
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
  m.def("mask_rows", [](py::function function, bool per_sequence, bool per_head) {
    return MaskHandle{rows_from_python(std::move(function), per_sequence, per_head)};
  });
  m.def("mask_compressed", [](std::shared_ptr<const MaskPlan> plan, const Bools& rows, const Bools& keys) {
    return MaskHandle{mask_compressed(std::move(plan), rows.data(), keys.data())};
  });
  m.def("mask_and", [](const std::vector<MaskHandle>& terms) { return MaskHandle{mask_and(refs(terms))}; });
  m.def("mask_or", [](const std::vector<MaskHandle>& terms) { return MaskHandle{mask_or(refs(terms))}; });
  m.def("mask_not", [](const MaskHandle& term) { return MaskHandle{mask_not(term.mask)}; });

  py::class_<MaskPlan, std::shared_ptr<MaskPlan>>(m, "MaskPlan")
      .def_property_readonly("batch", [](const MaskPlan& p) { return p.geometry().batch; })
      .def_property_readonly("heads", [](const MaskPlan& p) { return p.geometry().heads; })
      .def_property_readonly("q_len", [](const MaskPlan& p) { return p.geometry().q_len; })
      .def_property_readonly("kv_len", [](const MaskPlan& p) { return p.geometry().kv_len; })
      .def_property_readonly("kv_lengths", [](const MaskPlan& p) { return p.geometry().kv_lengths; })
      .def_property_readonly("q_offset", [](const MaskPlan& p) { return p.geometry().q_offset; })
      .def_property_readonly("nbytes", &MaskPlan::bytes)
      .def("__eq__", &same_pairs, py::is_operator(), py::call_guard<py::gil_scoped_release>())
      .def("is_subset", &is_subset, py::call_guard<py::gil_scoped_release>())
      .def("count", &count_pairs, py::call_guard<py::gil_scoped_release>())
      .def("empty_rows",
           [](const MaskPlan& plan) {
             const Geometry& g = plan.geometry();
             py::array_t<bool> out(std::vector<std::int64_t>{g.batch, g.heads, g.q_len});
             bool* data = out.mutable_data();
             {
               const py::gil_scoped_release unlocked;
               empty_rows(plan, data);
             }
             return out;
           })
      .def("used",
           [](const MaskPlan& plan) {
             const Geometry& g = plan.geometry();
             py::array_t<bool> rows(std::vector<std::int64_t>{plan.stored_batch(), g.q_len});
             py::array_t<bool> keys(std::vector<std::int64_t>{plan.stored_batch(), g.kv_len});
             bool *row_data = rows.mutable_data(), *key_data = keys.mutable_data();
             std::int64_t pairs = 0;
             {
               const py::gil_scoped_release unlocked;
               pairs = used(plan, row_data, key_data);
             }
             return py::make_tuple(rows, keys, pairs);
           })
      .def(
          "tiles",
          [](const MaskPlan& plan, const py::object& q_size, const py::object& kv_size, const py::object& threads) {
            const std::int64_t rows = integer(q_size, "q_size"), columns = integer(kv_size, "kv_size");
            if (rows < 1 || columns < 1) bad_value("q_size and kv_size must be at least 1, got " + shape_text({rows, columns}));
            const Geometry& g = plan.geometry();
            py::array_t<std::uint8_t> out(
                std::vector<std::int64_t>{g.batch, g.heads, (g.q_len + rows - 1) / rows, (g.kv_len + columns - 1) / columns});
            Tile* data = reinterpret_cast<Tile*>(out.mutable_data());
            const int count = thread_count(threads);
            {
              const py::gil_scoped_release unlocked;
              tile_map(plan, rows, columns, data, count);
            }
            return out;
          },
          py::arg("q_size") = 64, py::arg("kv_size") = 64, py::arg("threads") = py::none())
      .def("agrees",
           [](const MaskPlan& plan, const py::object& kv_lengths, const py::object& q_offset) {
             const Geometry& g = plan.geometry();
             return same(kv_lengths, "kv_lengths", g.kv_lengths, g.batch) && same(q_offset, "q_offset", g.q_offset, g.batch);
           })
      .def("spans",
           [](const MaskPlan& plan, std::int64_t b, std::int64_t h, std::int64_t i) {
             const Geometry& g = plan.geometry();
             if (b < 0 || b >= g.batch || h < 0 || h >= g.heads || i < 0 || i >= g.q_len)
               throw py::index_error("row must be inside " + shape_text({g.batch, g.heads, g.q_len}) + ", got " +
                                     shape_text({b, h, i}));
             const PlanRow row = plan.row(b, h, i);
             std::vector<std::pair<int, int>> spans;
             for (int s = 0; s < row.count; ++s) spans.emplace_back(row.spans[s].begin, row.spans[s].end);
             return std::pair{spans, row.bits != nullptr};
           })
      .def("__repr__", [](const MaskPlan& p) {
        const Geometry& g = p.geometry();
        return "MaskPlan(batch=" + std::to_string(g.batch) + ", heads=" + std::to_string(g.heads) +
               ", q_len=" + std::to_string(g.q_len) + ", kv_len=" + std::to_string(g.kv_len) +
               ", nbytes=" + std::to_string(p.bytes()) + ")";
      });
  m.def("make_plan", &make_plan);
  m.def("fill_from_plan", &fill);
}

}  // namespace maskattn
