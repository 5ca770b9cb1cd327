#include "cuda/bindings/plans.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace maskattn::cuda {
namespace {

using Words = py::array_t<std::uint64_t, py::array::c_style>;

Program to_device(const std::vector<std::int64_t>& words, std::size_t steps, std::int64_t spans, Stream stream) {
  Program program;
  program.bytes = static_cast<std::int64_t>(words.size() * sizeof(std::int64_t));
  program.memory = std::make_shared<DeviceMemory>(static_cast<std::size_t>(program.bytes), stream);
  program.view = {program.memory->data<const MaskStep>(), program.memory->data<const std::int64_t>() + 8 * steps,
                  static_cast<int>(steps)};
  program.spans = spans;
  upload(program.memory->data(), words.data(), static_cast<std::size_t>(program.bytes), stream);
  return program;
}

// What _core.mask_program has made, on the device.
Program make_program(const Integers& steps, const Integers& data, std::int64_t spans, std::uintptr_t stream) {
  std::vector<std::int64_t> words(steps.data(), steps.data() + steps.size());
  words.insert(words.end(), data.data(), data.data() + data.size());
  return to_device(words, static_cast<std::size_t>(steps.shape(0)), spans, stream_of(stream));
}

// The mask of a bool array of the device, which must live until what uses the program has been launched.
Program program_of_bools(const Array& keep, std::uintptr_t stream) {
  if (keep.dtype.code != dlpack::Bool) bad_type("mask must be a bool array (True = attend), got " + keep.dtype_name());
  if (keep.ndim() < 1 || keep.ndim() > 4)
    bad_value("mask must broadcast to (batch, heads, q_len, kv_len), got shape " + shape_text(keep.shape));
  MaskStep step{MaskOp::bools, MaskFold::push, false, {}};
  step.a[0] = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(keep.data));
  for (std::size_t axis = 0; axis < keep.shape.size(); ++axis)
    step.a[1 + axis + 4 - keep.shape.size()] = keep.shape[axis] == 1 ? 0 : keep.strides[axis];
  std::vector<std::int64_t> words(8);
  std::memcpy(words.data(), &step, sizeof step);
  const bool one_answer = keep.shape.back() == 1;
  return to_device(words, 1, one_answer ? 1 : (keep.shape.back() + 1) / 2, stream_of(stream));
}

// `batch` and `heads` are the geometry's, `stored` those that differ. Of `source` one is there: a program, or bits of the host,
// [stored batch][stored heads][q_len][words].
Plan make_plan(const std::variant<Program, Words>& source, std::pair<int, int> extents, int q_len, int kv_len,
               std::pair<int, int> stored, const Given& q_offset, const Given& kv_lengths, const Given& q_lengths,
               std::int64_t row_base, std::uintptr_t handle) {
  const Stream stream = stream_of(handle);
  const auto* program = std::get_if<Program>(&source);
  Plan plan;
  plan.batch = extents.first;
  plan.heads = extents.second;
  const std::int64_t spans = program ? std::max<std::int64_t>(1, program->spans) : 0;
  plan.extents = {stored.first, stored.second, q_len, kv_len, spans <= kMostSpans ? static_cast<int>(spans) : 0};
  plan.sequences = stored.first;
  const std::size_t arrays = PlanMemory::bytes(plan.extents);
  plan.bytes = static_cast<std::int64_t>(arrays + static_cast<std::size_t>(plan.sequences) * TakenPositions::kBytes);
  plan.memory = std::make_shared<DeviceMemory>(static_cast<std::size_t>(plan.bytes), stream);
  const TakenPositions taken(plan.memory->data<char>() + arrays, plan.sequences);
  plan.kv_lengths = taken.kv_lengths;
  plan.q_offset = taken.q_offset;
  plan.device = current_device();
  plan.stream = stream;

  Staged staged;
  constexpr const char* names = "kv_lengths and q_offset";
  take_positions(
      {take(q_offset, names, stream, staged), take(kv_lengths, names, stream, staged), take(q_lengths, "cu_q", stream, staged)},
      plan.sequences, q_len, kv_len, taken, stream);

  const PlanMemory memory(plan.extents, plan.memory->data());
  plan.view = memory.view();
  if (program) {
    lower_rows(program->view, {taken.q_offset, taken.kv_lengths, taken.q_lengths, row_base}, memory, stream);
  } else {
    const auto& bits = std::get<Words>(source);
    if (bits.size() != plan.extents.rows() * plan.extents.kv_tiles())
      bad_value("bits must have a word for every 64 keys of a row");
    upload(memory.bits, bits.data(), static_cast<std::size_t>(bits.nbytes()), stream);
  }
  list_tiles(plan.view, memory.tiles, memory.tile_counts, stream);
  let_go({&q_offset, &kv_lengths, &q_lengths}, stream);
  return plan;
}

// Waits for the plan's stream on another, and lets the plan live as long as that needs it.
template <class Work>
void on_stream(const Plan& plan, Stream stream, const Work& work) {
  wait_for(stream, plan.stream);
  work();
  wait_for(plan.stream, stream);
}

void fill_from_plan(const Plan& plan, Array& out, std::uint64_t shown, std::uint64_t hidden) {
  if (out.size() == 0) return;
  on_stream(plan, out.stream, [&] {
    fill(plan.view, plan.batch, plan.heads, out.data, static_cast<int>(out.item_bytes()), shown, hidden, out.stream);
  });
}

void bits_from_plan(const Plan& plan, Array& out) {
  if (out.size() == 0) return;
  on_stream(plan, out.stream,
            [&] { fill_bits(plan.view, plan.batch, plan.heads, static_cast<std::uint8_t*>(out.data), out.stream); });
}

// The lists as kinds of tiles, [stored batch][stored heads][query tiles][key tiles]: 0 not listed, 1 partial, 2 full. Waits.
py::array_t<std::uint8_t> tiles_of(const Plan& plan) {
  const PlanExtents& e = plan.extents;
  const std::int64_t q_tiles = e.q_tiles(), kv_tiles = e.kv_tiles(), lists = std::int64_t{e.batch} * e.heads * q_tiles;
  py::array_t<std::uint8_t> out(std::vector<std::int64_t>{e.batch, e.heads, q_tiles, kv_tiles});
  std::vector<TileEntry> tiles(static_cast<std::size_t>(lists * kv_tiles));
  std::vector<int> counts(static_cast<std::size_t>(lists));
  const OnDevice current(plan.device);
  copy(tiles.data(), plan.view.tiles, tiles.size() * sizeof(TileEntry), plan.stream);
  copy(counts.data(), plan.view.tile_counts, counts.size() * sizeof(int), plan.stream);
  synchronize(plan.stream);
  std::uint8_t* kinds = out.mutable_data();
  std::fill_n(kinds, out.size(), std::uint8_t{0});
  for (std::int64_t list = 0; list < lists; ++list)
    for (int t = 0, last = -1; t < counts[static_cast<std::size_t>(list)]; ++t) {
      const TileEntry tile = tiles[static_cast<std::size_t>(list * kv_tiles + t)];
      if (tile.kv_tile() <= last || tile.kv_tile() >= kv_tiles) throw std::logic_error("a list of tiles must ascend");
      last = tile.kv_tile();
      kinds[list * kv_tiles + last] = tile.full() ? 2 : 1;
    }
  return out;
}

// What the device's functions say when the host runs them: bits [batch][heads][q_len][words] of a program in the host's memory.
Words words_on_host(const Integers& steps, const Integers& data, int batch, int heads, int q_len, int kv_len,
                    const Integers& q_offset, const Integers& kv_lengths, std::int64_t row_base) {
  const ProgramView program{reinterpret_cast<const MaskStep*>(steps.data()), data.data(), static_cast<int>(steps.shape(0))};
  const std::int64_t words = (kv_len + 63) / 64;
  Words out(std::vector<std::int64_t>{batch, heads, q_len, words});
  std::uint64_t* to = out.mutable_data();
  for (int b = 0; b < batch; ++b)
    for (int h = 0; h < heads; ++h)
      for (int i = 0; i < q_len; ++i)
        for (std::int64_t word = 0; word < words; ++word) {
          const RowPlace place{b, h, row_base + i, q_offset.data()[b] + i, kv_lengths.data()[b]};
          *to++ = mask_word(program, place, 64 * word);
        }
  return out;
}

}  // namespace

GivenIntegers take(const Given& given, const char* name, Stream stream, Staged& staged) {
  if (const auto* host = std::get_if<Integers>(&given)) {
    const std::size_t bytes = static_cast<std::size_t>(host->nbytes());
    staged.push_back(std::make_shared<DeviceMemory>(bytes, stream));
    upload(staged.back()->data(), host->data(), bytes, stream);
    return {staged.back()->data(), true, host->size() == 1 ? 0 : 1};
  }
  const auto* array = std::get_if<Array>(&given);
  if (!array) return {};
  if (array->dtype.code != dlpack::Int || (array->dtype.bits != 32 && array->dtype.bits != 64))
    bad_type(std::string(name) + " must be int32 or int64 on CUDA, got " + array->dtype_name());
  return {array->data, array->dtype.bits == 64, array->size() == 1 ? 0 : array->strides[0]};
}

void let_go(std::initializer_list<const Given*> given, Stream stream) {
  for (const Given* each : given)
    if (const auto* array = std::get_if<Array>(each); array && array->stream != stream && !capturing(stream))
      wait_for(array->stream, stream);
}

Array integers_of(const std::int64_t* data, int count, std::shared_ptr<DeviceMemory> memory, Stream stream) {
  Array a;
  a.data = const_cast<std::int64_t*>(data);
  a.shape = {count};
  a.strides = {1};
  a.dtype = dtype_named("int64");
  a.device = current_device();
  a.read_only = true;
  a.stream = stream;
  a.owner = std::move(memory);
  return a;
}

void register_plans(py::module_& m) {
  py::class_<Program>(m, "Program").def_property_readonly("nbytes", [](const Program& p) { return p.bytes; });
  py::class_<Plan>(m, "Plan")
      .def_property_readonly("batch", [](const Plan& p) { return p.batch; })
      .def_property_readonly("heads", [](const Plan& p) { return p.heads; })
      .def_property_readonly("q_len", [](const Plan& p) { return p.extents.q_len; })
      .def_property_readonly("kv_len", [](const Plan& p) { return p.extents.kv_len; })
      .def_property_readonly("spans_per_row", [](const Plan& p) { return p.extents.spans_per_row; })
      .def_property_readonly("nbytes", [](const Plan& p) { return p.bytes; })
      .def_property_readonly("kv_lengths",
                             [](const Plan& p) { return integers_of(p.kv_lengths, p.sequences, p.memory, p.stream); })
      .def_property_readonly("device", [](const Plan& p) { return p.device; })
      .def_property_readonly("stream", [](const Plan& p) { return reinterpret_cast<std::uintptr_t>(p.stream); })
      .def("tiles", &tiles_of)
      .def("__repr__", [](const Plan& p) {
        return "<Plan of " + shape_text({p.batch, p.heads, p.extents.q_len, p.extents.kv_len}) +
               " on cuda:" + std::to_string(p.device) + ">";
      });
  m.def("make_program", &make_program);
  m.def("is_capturing", [](std::uintptr_t stream) { return capturing(stream_of(stream)); });
  m.def("program_of_bools", &program_of_bools);
  m.def("make_plan", &make_plan);
  m.def("fill_from_plan", &fill_from_plan);
  m.def("bits_from_plan", &bits_from_plan);
  m.def("words_on_host", &words_on_host);
}

}  // namespace maskattn::cuda
