#include "maskattn/packed_linear.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>

#include <pybind11/stl.h>

#include "borrow.hpp"
#include "recycled.hpp"

namespace maskattn {
namespace {

constexpr const char* kNames[] = {"float32", "bfloat16", "int8", "int4", "uint4"};

WeightType type_named(const std::string& name) {
  for (int i = 0; i < 5; ++i)
    if (name == kNames[i]) return static_cast<WeightType>(i);
  bad_value("dtype must be one of float32, bfloat16, int8, int4, uint4, got '" + name + "'");
}

void check_sizes(WeightType type, std::int64_t outputs, std::int64_t inputs, std::int64_t group) {
  if (outputs < 1 || inputs < 1 || outputs > (std::int64_t{1} << 31) || inputs > (std::int64_t{1} << 24))
    bad_value("a packed weight must have from 1 up to 2**31 outputs and 2**24 inputs, got " + shape_text({outputs, inputs}));
  // Sums of products of integers have 32 bits.
  if (type == WeightType::int8 && inputs > (std::int64_t{1} << 16))
    bad_value("a weight of int8 must have at most 65536 inputs, got " + std::to_string(inputs) + "; pack it as bfloat16");
  if (is_four_bit(type) && (group < 32 || group % 32 != 0 || group > 1024))
    bad_value("group must be a multiple of 32 up to 1024, got " + std::to_string(group));
}

std::unique_ptr<PackedWeight> make(std::int64_t outputs, std::int64_t inputs, const std::string& dtype, std::int64_t group) {
  const WeightType type = type_named(dtype);
  check_sizes(type, outputs, inputs, group);
  return std::make_unique<PackedWeight>(type, outputs, inputs, group);
}

// A weight over the bytes of another's `packed_bytes`, which live as long as it does.
PackedWeight over(std::int64_t outputs, std::int64_t inputs, const std::string& dtype, const py::array& bytes,
                  std::int64_t group) {
  const WeightType type = type_named(dtype);
  check_sizes(type, outputs, inputs, group);
  const auto owner = std::shared_ptr<py::array>(new py::array(bytes), [](py::array* held) {
    const py::gil_scoped_acquire locked;
    delete held;
  });
  const std::shared_ptr<const std::byte> data(owner, static_cast<const std::byte*>(bytes.data()));
  PackedWeight weight(type, outputs, inputs, group, data);
  if (!py::isinstance<py::array_t<std::uint8_t>>(bytes) || bytes.ndim() != 1 || bytes.strides(0) != 1 ||
      static_cast<std::size_t>(bytes.size()) != weight.whole_bytes())
    bad_value("packed bytes must be contiguous, uint8, of shape (" + std::to_string(weight.whole_bytes()) + ",), got " +
              describe(bytes));
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % kPackedAlign != 0)
    bad_value("packed bytes must begin at a multiple of " + std::to_string(kPackedAlign) + " bytes; copy them to such memory");
  return weight;
}

// All of the weight's memory, read only; of a slice there is none of its own.
py::array packed_bytes(const py::object& self) {
  const auto& weight = self.cast<const PackedWeight&>();
  if (!weight.whole()) bad_value("packed_bytes must be asked of a whole weight, got some rows of one; copy them first");
  py::array_t<std::uint8_t> view({static_cast<py::ssize_t>(weight.whole_bytes())}, {1},
                                 reinterpret_cast<const std::uint8_t*>(weight.data()), self);
  view.attr("flags").attr("writeable") = false;
  return view;
}

void check_fill(const PackedWeight& weight, std::int64_t first, const py::array& rows) {
  if (!weight.writable()) bad_value("a weight over foreign memory must be read only; pack its rows anew to change them");
  if (rows.ndim() != 2 || rows.shape(1) != weight.inputs() || first < 0 || rows.shape(0) > weight.outputs() - first)
    bad_value("rows must fit a weight of shape " + shape_text({weight.outputs(), weight.inputs()}) + " from row " +
              std::to_string(first) + " on, got " + describe(rows));
}

void fill(PackedWeight& weight, std::int64_t first, const py::array_t<float>& rows) {
  require_contiguous_rows(rows, "rows");
  check_fill(weight, first, rows);
  const int threads = thread_count(py::none());
  const py::gil_scoped_release unlocked;
  weight.fill(first, rows.shape(0), rows.data(), rows.strides(0) / rows.itemsize(), threads);
}

using Groups = py::array_t<float, py::array::c_style>;

void fill_groups(PackedWeight& weight, std::int64_t first, const py::array_t<std::uint8_t, py::array::c_style>& q,
                 const Groups& scales, const py::object& zeros) {
  if (!is_four_bit(weight.type())) bad_value("fill_groups must be asked of a weight of 4 bits, got float weights or int8");
  check_fill(weight, first, q);
  if (std::any_of(q.data(), q.data() + q.size(), [](std::uint8_t x) { return x > 15; }))
    bad_value("q must hold integers from 0 to 15");
  if (zeros.is_none() != (weight.type() == WeightType::int4))
    bad_value("zeros must be given for uint4, and None for int4, whose zero is 8");
  const auto held = zeros.is_none() ? scales : zeros.cast<Groups>();
  for (const Groups& each : {scales, held})
    if (each.ndim() != 2 || each.shape(0) != q.shape(0) || each.shape(1) != weight.padded_inputs() / weight.group())
      bad_value("scales and zeros must have shape (rows, groups) = " +
                shape_text({q.shape(0), weight.padded_inputs() / weight.group()}) + ", got " + describe(each));
  weight.fill_groups(first, q.shape(0), q.data(), scales.data(), zeros.is_none() ? nullptr : held.data());
}

// Rows in the order of `indices`, packed as they are here.
PackedWeight take(const PackedWeight& weight, const py::array_t<std::int64_t, py::array::c_style>& indices) {
  if (indices.ndim() != 1 || indices.size() == 0)
    bad_value("indices must have shape (rows,), one row at least, got " + describe(indices));
  for (py::ssize_t i = 0; i < indices.size(); ++i)
    if (indices.data()[i] < 0 || indices.data()[i] >= weight.outputs())
      bad_value("indices must be from 0 to " + std::to_string(weight.outputs() - 1) + ", got " +
                std::to_string(indices.data()[i]));
  return weight.take(indices.data(), indices.size());
}

py::array_t<float> rows_of(const PackedWeight& weight, const py::array_t<std::int64_t, py::array::c_style>& indices) {
  py::array_t<float> out({static_cast<std::int64_t>(indices.size()), weight.inputs()});
  for (py::ssize_t i = 0; i < indices.size(); ++i) {
    const std::int64_t index = indices.data()[i];
    if (index < 0 || index >= weight.outputs())
      bad_value("rows must be from 0 to " + std::to_string(weight.outputs() - 1) + ", got " + std::to_string(index));
    weight.row(index, out.mutable_data() + i * weight.inputs());
  }
  return out;
}

PackedWeight slice(const PackedWeight& weight, const py::slice& rows) {
  py::ssize_t start = 0, stop = 0, step = 0, count = 0;
  if (!rows.compute(weight.outputs(), &start, &stop, &step, &count)) throw py::error_already_set();
  if (step != 1 || count < 1) bad_value("rows of a packed weight must be a slice of step 1, not empty");
  return weight.slice(start, start + count);
}

// The rows of several weights as one, if they follow each other in one memory; else None.
py::object joined(const std::vector<const PackedWeight*>& parts) {
  if (parts.empty() || std::find(parts.begin(), parts.end(), nullptr) != parts.end())
    bad_value("parts must be packed weights, one at least, got " + std::string(parts.empty() ? "none" : "None among them"));
  std::int64_t outputs = 0;
  for (std::size_t i = 0; i < parts.size(); outputs += parts[i++]->outputs())
    if (i > 0 && !parts[i - 1]->followed_by(*parts[i])) return py::none();
  return py::cast(parts.front()->slice(0, outputs));
}

// x (rows, inputs) with contiguous rows, bias (outputs,) or None: shapes are linear.py's to check.
py::array_t<float> product(const PackedWeight& weight, const py::array_t<float>& x, const py::object& bias,
                           const py::object& threads, const std::optional<std::string>& activation) {
  require_contiguous_rows(x, "x");
  std::optional<Activation> function;
  if (activation) function = activation_named(*activation);
  py::array_t<float, py::array::c_style> added;
  if (!bias.is_none()) added = bias.cast<py::array_t<float, py::array::c_style>>();
  py::array_t<float> out(recycled_array(py::dtype::of<float>(), {x.shape(0), weight.outputs()}));
  const PackedLinear call{&weight,
                          x.shape(0),
                          x.data(),
                          x.strides(0) / x.itemsize(),
                          bias.is_none() ? nullptr : added.data(),
                          out.mutable_data(),
                          weight.outputs(),
                          thread_count(threads),
                          {function, false, false}};
  {
    const py::gil_scoped_release unlocked;
    linear(call);
  }
  return out;
}

// The largest outputs of each row: values (rows, count), outputs (rows, count), and the logarithms (rows,) or None.
py::tuple best_outputs(const PackedWeight& weight, const py::array_t<float>& x, const py::object& bias, std::int64_t count,
                       bool logsumexp, const py::object& threads) {
  require_contiguous_rows(x, "x");
  if (x.ndim() != 2 || x.shape(1) != weight.inputs())
    bad_value("x must have shape (rows, " + std::to_string(weight.inputs()) + "), got " + describe(x));
  if (count < 1 || count > weight.outputs())
    bad_value("count must be from 1 to the " + std::to_string(weight.outputs()) + " outputs, got " + std::to_string(count));
  py::array_t<float, py::array::c_style> added;
  if (!bias.is_none()) added = bias.cast<py::array_t<float, py::array::c_style>>();
  if (!bias.is_none() && added.size() != weight.outputs())
    bad_value("bias must have shape (" + std::to_string(weight.outputs()) + ",), got " + describe(added));
  const std::int64_t rows = x.shape(0);
  const int team = thread_count(threads);
  py::array_t<float> values({rows, count}), logarithms(logsumexp ? rows : 0);
  py::array_t<std::int64_t> outputs({rows, count});
  const BestOutputs best{count, values.mutable_data(), outputs.mutable_data(), logsumexp ? logarithms.mutable_data() : nullptr};
  const float* bias_data = bias.is_none() ? nullptr : added.data();
  {
    const py::gil_scoped_release unlocked;
    linear_best({&weight, rows, x.data(), x.strides(0) / x.itemsize(), bias_data, nullptr, 0, team}, best);
  }
  return py::make_tuple(values, outputs, logsumexp ? py::object(logarithms) : py::none());
}

}  // namespace

void register_packed_linear(py::module_& m) {
  py::class_<PackedWeight>(m, "PackedWeight")
      .def(py::init(&make), py::arg("outputs"), py::arg("inputs"), py::arg("dtype"), py::arg("group") = kDefaultGroup)
      .def_static("over", &over, py::arg("outputs"), py::arg("inputs"), py::arg("dtype"), py::arg("bytes").noconvert(),
                  py::arg("group") = kDefaultGroup)
      .def_property_readonly("packed_bytes", &packed_bytes)
      .def_property_readonly("group", [](const PackedWeight& w) { return w.group(); })
      .def_property_readonly("shape", [](const PackedWeight& w) { return py::make_tuple(w.outputs(), w.inputs()); })
      .def_property_readonly("dtype", [](const PackedWeight& w) { return kNames[static_cast<int>(w.type())]; })
      .def_property_readonly("ndim", [](const PackedWeight&) { return 2; })
      .def_property_readonly("nbytes", &PackedWeight::bytes)
      .def_static("joined", &joined, py::arg("parts"))
      .def("__getitem__", &slice, py::arg("rows"))
      .def("fill", &fill, py::arg("first"), py::arg("rows").noconvert())
      .def("fill_groups", &fill_groups, py::arg("first"), py::arg("q").noconvert(), py::arg("scales").noconvert(),
           py::arg("zeros") = py::none())
      .def("take", &take, py::arg("indices"))
      .def("rows", &rows_of, py::arg("indices"));
  m.def("best_outputs", &best_outputs, py::arg("weight"), py::arg("x").noconvert(), py::arg("bias"), py::arg("count"),
        py::arg("logsumexp"), py::arg("threads"));
  m.def("packed_linear", &product, py::arg("weight"), py::arg("x").noconvert(), py::arg("bias"), py::arg("threads"),
        py::arg("activation") = py::none());
  m.def("empty", &recycled_array, py::arg("dtype"), py::arg("shape"));
  m.def("recyclable_bytes", &recyclable_bytes);
}

}  // namespace maskattn
