#include "maskattn/decoder_step.hpp"

#include <pybind11/stl.h>

#include "call.hpp"

namespace maskattn {
namespace {

// A stack as maskattn/decoder/step.py describes it: tuples of maps, norms and numbers, whose arrays live as long as it does.
class StepHandle {
 public:
  StepHandle(const py::list& layers, std::int64_t width, bool before, bool after, bool parallel, const py::object& bias_table)
      : step_(take_layers(layers), width, {before, after, parallel}, take_bias(bias_table)) {}

  const DecoderStep& step() const { return step_; }

 private:
  std::vector<StepLayer> take_layers(const py::list& layers) {
    std::vector<StepLayer> taken;
    for (const py::handle& item : layers) {
      const auto layer = item.cast<py::tuple>();
      const auto forward = layer[5].cast<py::tuple>();
      StepFeedForward feed_forward{map(forward[0]), map(forward[1]), {}, forward[3].cast<bool>()};
      if (!forward[2].is_none()) feed_forward.activation = static_cast<Activation>(forward[2].cast<int>());
      std::optional<StepAttention> cross;
      if (!layer[3].is_none()) cross = attention(layer[3]);
      const MaskRef mask = layer[8].is_none() ? nullptr : layer[8].cast<MaskHandle>().mask;
      taken.push_back({mask, attention(layer[0]), *norm(layer[1]), norm(layer[2]), std::move(cross), norm(layer[4]),
                       std::move(feed_forward), *norm(layer[6]), norm(layer[7])});
    }
    return taken;
  }

  StepAttention attention(const py::handle& item) {
    const auto a = item.cast<py::tuple>();
    return {map(a[0]),
            map(a[1]),
            norm(a[2]),
            norm(a[3]),
            a[4].cast<std::int64_t>(),
            a[5].cast<std::int64_t>(),
            a[6].cast<std::int64_t>(),
            a[7].cast<double>(),
            a[8].cast<double>()};
  }

  StepMap map(const py::handle& item) {
    const auto pair = item.cast<py::tuple>();
    return {pair[0].cast<const PackedWeight&>(), floats(pair[1])};
  }

  std::optional<StepNorm> norm(const py::handle& item) {
    if (item.is_none()) return {};
    const auto n = item.cast<py::tuple>();
    return StepNorm{n[0].cast<bool>(), floats(n[1]), floats(n[2]), n[3].cast<float>()};
  }

  const float* floats(const py::handle& item) {
    if (item.is_none()) return nullptr;
    const auto array = item.cast<Floats>();
    kept_.push_back(array);
    return array.data();
  }

  DistanceBias take_bias(const py::object& table) {
    if (table.is_none()) return {};
    const auto array = table.cast<Doubles>();
    kept_.push_back(array);
    return {array.data(), array.shape(1) / 2, nullptr};
  }

  std::vector<py::object> kept_;
  DecoderStep step_;
};

// Strides in elements.
std::ptrdiff_t stride(const py::array& a, int axis) { return a.strides(axis) / a.itemsize(); }

StepCache cache_of(const py::handle& layer) {
  const auto keys = layer.attr("k_pool").cast<py::array_t<float>>(), values = layer.attr("v_pool").cast<py::array_t<float>>();
  const auto table = layer.attr("tables").cast<py::array_t<std::int32_t, py::array::c_style>>();
  // The arrays stay where they are while the layer does: nobody else grows them during a call.
  return {const_cast<float*>(keys.data()),
          const_cast<float*>(values.data()),
          {stride(keys, 0), stride(keys, 1), stride(keys, 2)},
          table.data(),
          keys.shape(2)};
}

StepMemory memory_of(const py::handle& pair) {
  const auto both = pair.cast<py::tuple>();
  const auto keys = both[0].cast<py::array_t<float>>(), values = both[1].cast<py::array_t<float>>();
  const auto rows = [](const py::array_t<float>& a) {
    return Rows<const void>{a.data(), Dtype::float32, {stride(a, 0), stride(a, 1), stride(a, 2)}};
  };
  return {rows(keys), rows(values), keys.shape(2)};
}

// x (batch, width) becomes the states behind the layers; lengths are of the caches' sequences.
void run(const StepHandle& handle, py::array_t<float, py::array::c_style>& x, const py::object& caches,
         const py::array_t<std::int64_t, py::array::c_style>& lengths, std::int64_t longest, const py::object& memories,
         const py::object& memory_lengths, const py::object& cosines, const py::object& sines, const py::object& threads) {
  const DecoderStep& step = handle.step();
  if (x.ndim() != 2 || x.shape(1) != step.width() || lengths.size() != x.shape(0) || py::len(caches) != step.layers())
    bad_value("x must have shape (batch, " + std::to_string(step.width()) + "), with a length each and a cache per layer, got " +
              describe(x));
  StepCall call;
  call.batch = x.shape(0);
  call.x = x.mutable_data();
  call.lengths = lengths.data();
  call.longest = longest;
  for (const py::handle& layer : caches) call.caches.push_back(cache_of(layer));
  if (!memories.is_none())
    for (const py::handle& pair : memories) call.memories.push_back(memory_of(pair));
  py::array_t<std::int64_t, py::array::c_style> held;
  if (!memory_lengths.is_none()) {
    held = memory_lengths.cast<py::array_t<std::int64_t, py::array::c_style>>();
    call.memory_lengths = held.data();
  }
  Floats cosine, sine;
  if (!cosines.is_none()) {
    cosine = cosines.cast<Floats>();
    sine = sines.cast<Floats>();
    call.cosines = cosine.data();
    call.sines = sine.data();
    call.rotary_half = cosine.shape(cosine.ndim() - 1);
    call.rotary_stride = cosine.shape(0) == 1 ? 0 : call.rotary_half;
  }
  call.threads = thread_count(threads);
  const py::gil_scoped_release unlocked;
  step.run(call);
}

}  // namespace

void register_decoder_step(py::module_& m) {
  py::class_<StepHandle>(m, "DecoderStep")
      .def(py::init<const py::list&, std::int64_t, bool, bool, bool, const py::object&>(), py::arg("layers"), py::arg("width"),
           py::arg("before"), py::arg("after"), py::arg("parallel"), py::arg("bias_table"))
      .def("run", &run, py::arg("x").noconvert(), py::arg("caches"), py::arg("lengths"), py::arg("longest"), py::arg("memories"),
           py::arg("memory_lengths"), py::arg("cosines"), py::arg("sines"), py::arg("threads"));
}

}  // namespace maskattn
