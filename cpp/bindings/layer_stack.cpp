#include "maskattn/layer_stack.hpp"

#include <algorithm>
#include <numeric>

#include <pybind11/stl.h>

#include "call.hpp"

namespace maskattn {
namespace {

// A stack as maskattn/decoder/core_layers.py describes it: tuples of maps, norms and numbers, whose arrays live as long as it
// does.
class StackHandle {
 public:
  StackHandle(const py::list& layers, std::int64_t width, bool before, bool after, bool parallel, const py::object& bias_table,
              bool rounds)
      : stack_(take_layers(layers), width, {before, after, parallel}, take_bias(bias_table),
               rounds ? Dtype::bfloat16 : Dtype::float32) {}

  const LayerStack& stack() const { return stack_; }

 private:
  std::vector<StackLayer> take_layers(const py::list& layers) {
    std::vector<StackLayer> taken;
    for (const py::handle& item : layers) {
      const auto layer = item.cast<py::tuple>();
      const auto forward = layer[5].cast<py::tuple>();
      StackFeedForward feed_forward{map(forward[0]), map(forward[1]), {}, forward[3].cast<bool>()};
      if (!forward[2].is_none()) feed_forward.activation = static_cast<Activation>(forward[2].cast<int>());
      std::optional<StackAttention> cross;
      if (!layer[3].is_none()) cross = attention(layer[3]);
      const MaskRef mask = layer[8].is_none() ? nullptr : layer[8].cast<MaskHandle>().mask;
      taken.push_back({mask, layer[9].cast<bool>(), attention(layer[0]), *norm(layer[1]), norm(layer[2]), std::move(cross),
                       norm(layer[4]), std::move(feed_forward), *norm(layer[6]), norm(layer[7])});
    }
    return taken;
  }

  StackAttention attention(const py::handle& item) {
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

  StackMap map(const py::handle& item) {
    const auto pair = item.cast<py::tuple>();
    return {pair[0].cast<const PackedWeight&>(), floats(pair[1])};
  }

  std::optional<StackNorm> norm(const py::handle& item) {
    if (item.is_none()) return {};
    const auto n = item.cast<py::tuple>();
    return StackNorm{n[0].cast<bool>(), floats(n[1]), floats(n[2]), n[3].cast<float>()};
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
  LayerStack stack_;
};

// Strides in elements.
std::ptrdiff_t stride(const py::array& a, int axis) { return a.strides(axis) / a.itemsize(); }

// float32, or bfloat16, whose type NumPy does not know by itself: who calls gives no other.
StackCache cache_of(const py::handle& layer) {
  const auto keys = layer.attr("k_pool").cast<py::array>(), values = layer.attr("v_pool").cast<py::array>();
  const auto table = layer.attr("tables").cast<py::array_t<std::int32_t, py::array::c_style>>();
  // The arrays stay where they are while the layer does: nobody else grows them during a call.
  return {keys.itemsize() == 4 ? Dtype::float32 : Dtype::bfloat16,
          const_cast<void*>(keys.data()),
          const_cast<void*>(values.data()),
          {stride(keys, 0), stride(keys, 1), stride(keys, 2)},
          table.data(),
          table.shape(1),
          keys.shape(2)};
}

// Keys and values (tokens, heads, head_dim) of packed sequences.
StackMemory memory_of(const py::handle& pair, const std::int64_t* starts) {
  const auto both = pair.cast<py::tuple>();
  const auto rows = [&](const py::handle& item) {
    const auto a = item.cast<py::array>();
    return Rows<const void>{
        a.data(), a.itemsize() == 4 ? Dtype::float32 : Dtype::bfloat16, {0, stride(a, 1), stride(a, 0)}, starts};
  };
  return {rows(both[0]), rows(both[1])};
}

using Counts = py::array_t<std::int64_t, py::array::c_style>;

// x (rows, width) becomes the states behind the layers; see LayerStack.run in _core.pyi.
void run(const StackHandle& handle, py::array_t<float, py::array::c_style>& x, const Counts& counts, const py::object& caches,
         const py::object& stored, const py::object& masks, const py::object& memory, const py::object& turns,
         const py::object& threads) {
  const LayerStack& stack = handle.stack();
  StackCall call;
  call.batch = counts.size();
  call.counts = counts.data();
  if (x.ndim() != 2 || x.shape(1) != stack.width() ||
      x.shape(0) != std::accumulate(counts.data(), counts.data() + counts.size(), std::int64_t{0}))
    bad_value("x must have shape (sum of counts, " + std::to_string(stack.width()) + "), got " + describe(x));
  call.x = x.mutable_data();
  Counts lengths, starts, memory_lengths;
  if (!caches.is_none()) {
    lengths = stored.cast<Counts>();
    call.stored = lengths.data();
    for (const py::handle& layer : caches) call.caches.push_back(cache_of(layer));
    if (call.caches.size() != stack.layers() || lengths.size() != call.batch)
      bad_value("caches and stored must be of every layer and sequence");
  }
  if (!masks.is_none())
    for (const py::handle& mask : masks) call.masks.push_back(mask.is_none() ? nullptr : mask.cast<MaskHandle>().mask);
  if (!memory.is_none()) {
    const auto parts = memory.cast<py::tuple>();
    starts = parts[1].cast<Counts>();
    memory_lengths = parts[2].cast<Counts>();
    for (const py::handle& pair : parts[0]) call.memories.push_back(memory_of(pair, starts.data()));
    call.memory_lengths = memory_lengths.data();
    for (py::ssize_t b = 0; b < memory_lengths.size(); ++b) call.memory_len = std::max(call.memory_len, memory_lengths.data()[b]);
  }
  Floats cosine, sine;
  if (!turns.is_none()) {
    const auto both = turns.cast<py::tuple>();
    cosine = both[0].cast<Floats>();
    sine = both[1].cast<Floats>();
    call.cosines = cosine.data();
    call.sines = sine.data();
    call.rotary_half = cosine.shape(1);
  }
  call.threads = thread_count(threads);
  const py::gil_scoped_release unlocked;
  stack.run(call);
}

}  // namespace

void register_layer_stack(py::module_& m) {
  py::class_<StackHandle>(m, "LayerStack")
      .def(py::init<const py::list&, std::int64_t, bool, bool, bool, const py::object&, bool>(), py::arg("layers"),
           py::arg("width"), py::arg("before"), py::arg("after"), py::arg("parallel"), py::arg("bias_table"), py::arg("rounds"))
      .def("run", &run, py::arg("x").noconvert(), py::arg("counts"), py::arg("caches"), py::arg("stored"), py::arg("masks"),
           py::arg("memory"), py::arg("turns"), py::arg("threads"));
}

}  // namespace maskattn
