#include "plans.hpp"

#include <pybind11/stl.h>

#include <atomic>
#include <limits>

#include "borrow.hpp"

namespace maskattn {
namespace {

constexpr std::int64_t kFarthest = std::int64_t{1} << 62;  // positions: room to add lengths and windows

Geometry geometry_of(const py::object& q_length, const py::object& kv_length, const py::object& sequences,
                     const py::object& head_count, const py::object& q_offset, const py::object& kv_lengths) {
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
  return geometry;
}

std::unique_ptr<PlanHandle> make_plan(const MaskHandle& handle, const py::object& q_len, const py::object& kv_len,
                                      const py::object& batch, const py::object& heads, const py::object& q_offset,
                                      const py::object& kv_lengths, const py::object& threads) {
  Geometry geometry = geometry_of(q_len, kv_len, batch, heads, q_offset, kv_lengths);
  const int count = thread_count(threads);
  const py::gil_scoped_release unlocked;
  return std::make_unique<PlanHandle>(MaskPlan(handle.mask, std::move(geometry), count));
}

// (q_offset, kv_lengths), one or one per sequence, of a plan that could be made.
std::pair<std::vector<std::int64_t>, std::vector<std::int64_t>> check_geometry(const MaskHandle& handle, const py::object& q_len,
                                                                               const py::object& kv_len, const py::object& batch,
                                                                               const py::object& heads,
                                                                               const py::object& q_offset,
                                                                               const py::object& kv_lengths) {
  Geometry geometry = geometry_of(q_len, kv_len, batch, heads, q_offset, kv_lengths);
  check_mask(handle.mask, geometry);
  return {std::move(geometry.q_offset), std::move(geometry.kv_lengths)};
}

void fill(const PlanHandle& handle, py::array& out, std::uint64_t shown, std::uint64_t hidden, const py::object& threads) {
  const auto plan = handle.get();
  void* data = out.mutable_data();
  const auto item = static_cast<std::size_t>(out.itemsize());
  const int count = thread_count(threads);
  const py::gil_scoped_release unlocked;
  fill_from_plan(*plan, data, item, shown, hidden, count);
}

void fill_bits(const PlanHandle& handle, py::array& out, const py::object& threads) {
  const auto plan = handle.get();
  auto* data = static_cast<std::uint8_t*>(out.mutable_data());
  const int count = thread_count(threads);
  const py::gil_scoped_release unlocked;
  bits_from_plan(*plan, data, count);
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

std::unique_ptr<PlanHandle> slice(const MaskPlan& plan, const py::object& rows) {
  if (!py::isinstance<py::slice>(rows)) bad_type("rows must be a slice, got " + describe(rows) + "; pass plan[i : i + 1]");
  std::size_t begin, end, step, count;
  if (!rows.cast<py::slice>().compute(static_cast<std::size_t>(plan.geometry().q_len), &begin, &end, &step, &count))
    throw py::error_already_set();
  if (step != 1) bad_value("rows of a plan must be sliced with a step of 1, got " + std::string(py::repr(rows)));
  const auto first = static_cast<std::int64_t>(begin);
  return std::make_unique<PlanHandle>(plan.slice(first, first + static_cast<std::int64_t>(count)));
}

py::object extend(const py::object& self, const py::object& n, const py::object& threads) {
  auto& handle = self.cast<PlanHandle&>();
  const std::int64_t more = integer(n, "n");
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();
  if (more < 0 || more > most) bad_value("n must be from 0 to 2**31 - 1, got " + std::to_string(more));
  const int count = thread_count(threads);
  {
    const py::gil_scoped_release unlocked;
    handle.extend(more, count);
  }
  return self;
}

// A function of a plan as one of a handle.
template <class Result, class... Arguments>
auto on_plan(Result (*function)(const MaskPlan&, Arguments...)) {
  return [function](const PlanHandle& handle, Arguments... arguments) {
    const auto plan = handle.get();
    return function(*plan, arguments...);
  };
}

template <bool (*compare)(const MaskPlan&, const MaskPlan&)>
bool compared(const PlanHandle& a, const PlanHandle& b) {
  const auto x = a.get(), y = b.get();
  return compare(*x, *y);
}

}  // namespace

void PlanHandle::extend(std::int64_t n, int threads) {
  for (bool done = false; !done;) {
    const auto growth = get()->growth(n, threads);
    const std::lock_guard lock(guard_);
    if (plan_.use_count() > 1)
      plan_ = std::make_shared<MaskPlan>(*plan_);  // calls under way keep theirs
    else
      std::atomic_thread_fence(std::memory_order_acquire);  // the last such call is done reading
    done = plan_->grow(*growth);                            // not where another thread has extended the plan meanwhile
  }
}

void register_plans(py::module_& m) {
  py::class_<PlanHandle>(m, "MaskPlan")
      .def_property_readonly("batch", on_plan(+[](const MaskPlan& p) { return p.geometry().batch; }))
      .def_property_readonly("heads", on_plan(+[](const MaskPlan& p) { return p.geometry().heads; }))
      .def_property_readonly("q_len", on_plan(+[](const MaskPlan& p) { return p.geometry().q_len; }))
      .def_property_readonly("kv_len", on_plan(+[](const MaskPlan& p) { return p.geometry().kv_len; }))
      .def_property_readonly("kv_lengths", on_plan(+[](const MaskPlan& p) { return p.geometry().kv_lengths; }))
      .def_property_readonly("q_offset", on_plan(+[](const MaskPlan& p) { return p.geometry().q_offset; }))
      .def_property_readonly("expr", on_plan(+[](const MaskPlan& p) { return MaskHandle{p.mask()}; }))
      .def_property_readonly("stored", on_plan(+[](const MaskPlan& p) { return std::pair{p.stored_batch(), p.stored_heads()}; }))
      .def_property_readonly("row_base", on_plan(+[](const MaskPlan& p) { return p.row_base(); }))
      .def_property_readonly("nbytes", on_plan(+[](const MaskPlan& p) { return p.bytes(); }))
      .def("__eq__", &compared<same_pairs>, py::is_operator(), py::call_guard<py::gil_scoped_release>())
      .def("is_subset", &compared<is_subset>, py::call_guard<py::gil_scoped_release>())
      .def("count", on_plan(&count_pairs), py::call_guard<py::gil_scoped_release>())
      .def("empty_rows", on_plan(+[](const MaskPlan& plan) {
             const Geometry& g = plan.geometry();
             py::array_t<bool> out(std::vector<std::int64_t>{g.batch, g.heads, g.q_len});
             bool* data = out.mutable_data();
             {
               const py::gil_scoped_release unlocked;
               empty_rows(plan, data);
             }
             return out;
           }))
      .def("used", on_plan(+[](const MaskPlan& plan) {
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
           }))
      .def("tiles",
           on_plan(+[](const MaskPlan& plan, const py::object& q_size, const py::object& kv_size, const py::object& threads) {
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
           }),
           py::arg("q_size") = 64, py::arg("kv_size") = 64, py::arg("threads") = py::none())
      .def("agrees", on_plan(+[](const MaskPlan& plan, const py::object& kv_lengths, const py::object& q_offset) {
             const Geometry& g = plan.geometry();
             return same(kv_lengths, "kv_lengths", g.kv_lengths, g.batch) && same(q_offset, "q_offset", g.q_offset, g.batch);
           }))
      .def("spans", on_plan(+[](const MaskPlan& plan, std::int64_t b, std::int64_t h, std::int64_t i) {
             const Geometry& g = plan.geometry();
             if (b < 0 || b >= g.batch || h < 0 || h >= g.heads || i < 0 || i >= g.q_len)
               throw py::index_error("row must be inside " + shape_text({g.batch, g.heads, g.q_len}) + ", got " +
                                     shape_text({b, h, i}));
             const PlanRow row = plan.row(b, h, i);
             std::vector<std::pair<int, int>> spans;
             for (int s = 0; s < row.count; ++s) spans.emplace_back(row.spans[s].begin, row.spans[s].end);
             return std::pair{spans, row.bits != nullptr};
           }))
      .def("extend", &extend, py::arg("n") = 1, py::arg("threads") = py::none())
      .def("__getitem__", on_plan(&slice), py::arg("rows"))
      .def("__repr__", on_plan(+[](const MaskPlan& p) {
             const Geometry& g = p.geometry();
             return "MaskPlan(batch=" + std::to_string(g.batch) + ", heads=" + std::to_string(g.heads) +
                    ", q_len=" + std::to_string(g.q_len) + ", kv_len=" + std::to_string(g.kv_len) +
                    ", nbytes=" + std::to_string(p.bytes()) + ")";
           }));
  m.def("make_plan", &make_plan);
  m.def("check_geometry", &check_geometry);
  m.def("fill_from_plan", &fill);
  m.def("bits_from_plan", &fill_bits);
}

}  // namespace maskattn
