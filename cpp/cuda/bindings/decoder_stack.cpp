#include <pybind11/stl.h>

#include "cuda/bindings/decoder_call.hpp"

namespace maskattn::cuda {
namespace {

const float* floats(const py::handle& item) { return item.is_none() ? nullptr : item.cast<const DeviceArray&>().floats(); }

DeviceMap map(const py::handle& item) {
  if (item.is_none()) return {};
  const auto pair = item.cast<py::tuple>();
  const auto& weight = pair[0].cast<const DeviceArray&>();
  return {weight.data(), floats(pair[1]), weight.extent(0), weight.extent(1)};
}

Norm norm(const py::handle& item) {
  if (item.is_none()) return {};
  const auto n = item.cast<py::tuple>();
  return {floats(n[1]), floats(n[2]), n[3].cast<float>(), n[0].cast<bool>()};
}

// A stack as maskattn/decoder/device/describe.py describes it: tuples of maps, norms and numbers, whose arrays live as long as it
// does.
class StackHandle {
 public:
  StackHandle(const DevicePointer& device, const py::dtype& dtype, int width, const py::tuple& placement, const py::list& layers,
              const py::object& bias_table, const py::object& embedding, const py::object& final_norm,
              const py::object& final_map)
      : device_(device), kept_{layers, bias_table, embedding, final_norm, final_map} {
    DeviceParts parts{};
    parts.width = width;
    parts.dtype = dtype_of(dtype);
    parts.placement = {placement[0].cast<bool>(), placement[1].cast<bool>(), placement[2].cast<bool>()};
    for (const py::handle& item : layers) parts.layers.push_back(layer(item.cast<py::tuple>()));
    if (!bias_table.is_none()) {
      parts.bias_table = floats(bias_table);
      parts.bias_reach = bias_table.cast<const DeviceArray&>().extent(1) / 2;
    }
    parts.embedding = embedding_of(embedding.cast<py::tuple>());
    parts.final_norm = norm(final_norm);
    parts.final_map = map(final_map);
    stack_ = std::make_unique<DeviceStack>(device, std::move(parts));
  }

  ~StackHandle() {
    const py::gil_scoped_release unlocked;
    stack_.reset();
  }
  StackHandle(const StackHandle&) = delete;
  StackHandle& operator=(const StackHandle&) = delete;

  DeviceStack& stack() const { return *stack_; }
  const DevicePointer& device() const { return device_; }

 private:
  DeviceLayer layer(const py::tuple& item) {
    const auto forward = item[5].cast<py::tuple>();
    DeviceLayer made{};
    made.self = attention(item[0].cast<py::tuple>());
    made.self_norm = norm(item[1]);
    made.self_inner = norm(item[2]);
    if (!item[3].is_none()) made.cross = attention(item[3].cast<py::tuple>());
    made.cross_norm = norm(item[4]);
    made.up = map(forward[0]);
    made.down = map(forward[1]);
    made.function = forward[2].is_none() ? Function::identity : static_cast<Function>(forward[2].cast<int>());
    made.gated = forward[3].cast<bool>();
    made.feed_forward_norm = norm(item[6]);
    made.feed_forward_inner = norm(item[7]);
    return made;
  }

  DeviceAttention attention(const py::tuple& a) {
    return {map(a[0]),        map(a[1]),        norm(a[2]),         norm(a[3]),        a[4].cast<int>(),
            a[5].cast<int>(), a[6].cast<int>(), a[7].cast<float>(), a[8].cast<float>()};
  }

  DeviceEmbedding embedding_of(const py::tuple& e) {
    const DeviceArray* table = e[0].is_none() ? nullptr : &e[0].cast<const DeviceArray&>();
    const float* positions = floats(e[4]);
    return {table ? table->data() : nullptr,
            table ? table->extent(1) : 0,
            e[1].cast<float>(),
            map(e[2]),
            floats(e[3]),
            positions,
            positions ? e[4].cast<const DeviceArray&>().extent(0) : 0,
            e[5].cast<int>(),
            norm(e[6])};
  }

  DevicePointer device_;
  std::vector<py::object> kept_;
  std::unique_ptr<DeviceStack> stack_;
};

py::tuple run(const StackHandle& stack, const py::object& tokens, const py::object& segments, const py::object& x,
              const Ints& counts, const Ints& stored, const py::object& pools, const py::object& tables, const py::list& masks,
              const std::vector<int>& mask_of_layer, const py::object& memory, const py::object& turns,
              const std::vector<int>& taps) {
  CallHandle call(stack.stack(), stack.device(), counts, stored);
  call.take_rows(tokens, segments, x);
  call.take_cache(pools, tables);
  call.take_masks(masks, mask_of_layer);
  call.take_memory(memory);
  call.take_turns(turns);
  return call.run(taps);
}

// function(map(x)), float32 (rows, outputs); x has as many rows of the map's inputs as fit.
py::object apply_map(const StackHandle& stack, const py::object& description, int function, const DeviceArray& x) {
  const DeviceMap in = map(description);
  const auto size = static_cast<std::int64_t>(x.bytes() / sizeof(float));
  require(size % in.inputs == 0, "x must be whole rows");
  const int rows = static_cast<int>(size / in.inputs);
  const float* from = x.floats();
  auto made = new_floats(stack.device(), rows, in.outputs);
  {
    const py::gil_scoped_release unlocked;
    stack.stack().apply(in, static_cast<Function>(function), rows, from, made->floats());
  }
  return py::cast(std::move(made));
}

// Keys and values (sources * page, heads, head_dim) of cross-attention, of rows x.
py::tuple project_memory(const StackHandle& stack, const py::object& description, const py::object& of_keys, int heads,
                         int head_dim, const DeviceArray& x, const Ints& sources, const Ints& positions, int source_count,
                         int page, const py::dtype& dtype) {
  const DeviceMap in = map(description);
  const Norm key_norm = norm(of_keys);
  require(x.extent(1) == in.inputs && sources.size() == x.extent(0) && positions.size() == x.extent(0) &&
              in.outputs == 2 * heads * head_dim,
          "rows, sources and positions must belong together");
  const std::vector<std::int64_t> shape{std::int64_t{source_count} * page, heads, head_dim};
  const Dtype kind = dtype_of(dtype);
  require(kind == stack.stack().parts().dtype, "dtype must be the stack's");
  auto keys = std::make_unique<DeviceArray>(stack.device(), shape, dtype, kind),
       values = std::make_unique<DeviceArray>(stack.device(), shape, dtype, kind);
  {
    const py::gil_scoped_release unlocked;
    stack.stack().project_memory(in, key_norm, heads, head_dim, x.extent(0), x.floats(), sources.data(), positions.data(),
                                 keys->data(), values->data(), page);
  }
  return py::make_tuple(py::cast(std::move(keys)), py::cast(std::move(values)));
}

}  // namespace

void register_device_stacks(py::module_& m) {
  py::class_<StackHandle>(m, "DeviceStack")
      .def(py::init<const DevicePointer&, const py::dtype&, int, const py::tuple&, const py::list&, const py::object&,
                    const py::object&, const py::object&, const py::object&>(),
           py::arg("device"), py::arg("dtype"), py::arg("width"), py::arg("placement"), py::arg("layers"), py::arg("bias_table"),
           py::arg("embedding"), py::arg("final_norm"), py::arg("final_map"))
      .def("run", &run, py::arg("tokens"), py::arg("segments"), py::arg("x"), py::arg("counts"), py::arg("stored"),
           py::arg("pools"), py::arg("tables"), py::arg("masks"), py::arg("mask_of_layer"), py::arg("memory"), py::arg("turns"),
           py::arg("taps"))
      .def("project_memory", &project_memory, py::arg("map"), py::arg("norm"), py::arg("heads"), py::arg("head_dim"),
           py::arg("x"), py::arg("sources"), py::arg("positions"), py::arg("source_count"), py::arg("page"), py::arg("dtype"))
      .def("apply", &apply_map, py::arg("map"), py::arg("function"), py::arg("x"))
      .def_property_readonly("graphs", [](const StackHandle& s) { return s.stack().graphs(); });
}

}  // namespace maskattn::cuda
