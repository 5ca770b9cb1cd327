#include <pybind11/stl.h>

#include <algorithm>

#include "cuda/bindings/decoder.hpp"

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

// What a call borrows, and what must live until it is launched.
class CallHandle {
 public:
  CallHandle(const StackHandle& handle, const Ints& counts, const Ints& stored)
      : handle_(handle), counts_(counts), stored_(stored) {
    require(counts.size() == stored.size(), "counts and stored must have one element a sequence");
    for (py::ssize_t b = 0; b < counts.size(); ++b) {
      require(counts.data()[b] >= 0 && stored.data()[b] >= 0, "counts and stored must be 0 or more");
      rows_ += counts.data()[b];
      longest_ = std::max(longest_, counts.data()[b]);
    }
    call_.batch = static_cast<int>(counts.size());
    call_.counts = counts.data();
    call_.stored = stored.data();
  }

  void take_rows(const py::object& tokens, const py::object& segments, const py::object& x) {
    const DeviceParts& parts = handle_.stack().parts();
    require(tokens.is_none() != x.is_none(), "tokens or x must be given, and not both");
    require(tokens.is_none() || parts.embedding.table, "tokens need a stack with embeddings");
    call_.tokens = numbers(tokens, rows_, "tokens must have one element a row");
    call_.segments = numbers(segments, rows_, "segments must have one element a row");
    if (!py::isinstance<DeviceArray>(x)) {
      call_.x = reals(x, std::int64_t{rows_} * parts.width, "x must have shape (rows, width)");
      return;
    }
    const auto& raw = x.cast<const DeviceArray&>();
    require(raw.shape() == std::vector<std::int64_t>{rows_, parts.width}, "x must have shape (rows, width)");
    kept_.push_back(x);
    call_.raw = raw.floats();
  }

  void take_cache(const py::object& pools, const py::object& tables) {
    if (pools.is_none()) return;
    for (const py::handle& item : pools) {
      const auto pair = item.cast<py::tuple>();
      const auto &keys = pair[0].cast<const DeviceArray&>(), &values = pair[1].cast<const DeviceArray&>();
      require(keys.shape().size() == 4 && keys.kind() == handle_.stack().parts().dtype, "pools must be of the stack's dtype");
      call_.pools.push_back({keys.data(), values.data()});
      call_.page_size = keys.extent(2);
    }
    require(call_.pools.size() == layers(), "pools must be one pair a layer");
    const auto table = tables.cast<Ints>();
    require(table.ndim() == 3 && table.shape(1) == call_.batch &&
                (table.shape(0) == 1 || table.shape(0) == static_cast<py::ssize_t>(layers())),
            "tables must have shape (layers or 1, batch, pages of a sequence)");
    call_.per_sequence = static_cast<int>(table.shape(2));
    call_.tables.assign(table.data(), table.data() + table.size());
    for (int b = 0; b < call_.batch; ++b)
      require(call_.stored[b] + call_.counts[b] <= call_.per_sequence * call_.page_size, "the cache has no room for these rows");
  }

  void take_masks(const py::list& masks, const std::vector<int>& mask_of_layer) {
    for (const py::handle& item : masks) {
      const auto spans = item.cast<Ints>();
      require(spans.ndim() == 4 && spans.shape(0) == call_.batch && spans.shape(1) == longest_ && spans.shape(3) == 2,
              "masks must be spans (batch, longest count, spans of a row, 2)");
      kept_.push_back(spans);
      call_.masks.push_back({reinterpret_cast<const Span*>(spans.data()), static_cast<int>(spans.shape(2))});
    }
    require(mask_of_layer.size() == layers(), "every layer must have a mask");
    for (const int mask : mask_of_layer) require(mask >= 0 && mask < static_cast<int>(call_.masks.size()), "unknown mask");
    call_.mask_of_layer = mask_of_layer;
  }

  void take_memory(const py::object& memory) {
    const auto& parts = handle_.stack().parts();
    const bool reads =
        std::any_of(parts.layers.begin(), parts.layers.end(), [](const DeviceLayer& l) { return l.cross.has_value(); });
    require(reads == !memory.is_none(), "memory must be given to layers with cross-attention, and to no others");
    if (!reads) return;
    const auto item = memory.cast<py::tuple>();
    call_.memory_page = item[3].cast<int>();
    std::int64_t sources = 0;
    for (const py::handle& both : item[0]) {
      const auto pair = both.cast<py::tuple>();
      const auto &keys = pair[0].cast<const DeviceArray&>(), &values = pair[1].cast<const DeviceArray&>();
      sources = keys.shape().at(0) / call_.memory_page;
      call_.memories.push_back({keys.data(), values.data()});
    }
    require(call_.memories.size() == layers(), "memory must be one pair a layer");
    call_.memory_sources = numbers(item[1], call_.batch, "sources must have one element a sequence");
    call_.memory_lengths = numbers(item[2], call_.batch, "lengths must have one element a sequence");
    for (int b = 0; b < call_.batch; ++b)
      require(call_.memory_sources[b] >= 0 && call_.memory_sources[b] < sources && call_.memory_lengths[b] <= call_.memory_page,
              "memory must hold what sources and lengths say");
  }

  void take_turns(const py::object& turns) {
    if (turns.is_none()) return;
    const auto both = turns.cast<py::tuple>();
    const auto cosines = both[0].cast<Floats>();
    require(cosines.ndim() == 2 && cosines.shape(0) == rows_, "turns must be two arrays (rows, rotary_dim / 2)");
    call_.rotary_half = static_cast<int>(cosines.shape(1));
    call_.cosines = reals(both[0], cosines.size(), "turns must be alike");
    call_.sines = reals(both[1], cosines.size(), "turns must be alike");
  }

  py::tuple run(const std::vector<int>& taps) {
    const DeviceParts& parts = handle_.stack().parts();
    auto out = new_floats(handle_.device(), rows_, parts.out_width());
    call_.out = out->floats();
    py::list tapped;
    for (const int layer : taps) {
      auto states = new_floats(handle_.device(), rows_, parts.width);
      call_.taps.emplace_back(layer, states->floats());
      tapped.append(py::cast(std::move(states)));
    }
    {
      const py::gil_scoped_release unlocked;
      handle_.stack().run(call_);
    }
    return py::make_tuple(py::cast(std::move(out)), tapped);
  }

 private:
  std::size_t layers() const { return handle_.stack().parts().layers.size(); }

  const int* numbers(const py::handle& item, std::int64_t count, const char* text) {
    if (item.is_none()) return nullptr;
    const auto array = item.cast<Ints>();
    require(array.size() == count, text);
    kept_.push_back(array);
    return array.data();
  }
  const float* reals(const py::handle& item, std::int64_t count, const char* text) {
    if (item.is_none()) return nullptr;
    const auto array = item.cast<Floats>();
    require(array.size() == count, text);
    kept_.push_back(array);
    return array.data();
  }

  const StackHandle& handle_;
  Ints counts_, stored_;
  DeviceCall call_;
  int rows_ = 0, longest_ = 0;
  std::vector<py::object> kept_;
};

py::tuple run(const StackHandle& stack, const py::object& tokens, const py::object& segments, const py::object& x,
              const Ints& counts, const Ints& stored, const py::object& pools, const py::object& tables, const py::list& masks,
              const std::vector<int>& mask_of_layer, const py::object& memory, const py::object& turns,
              const std::vector<int>& taps) {
  CallHandle call(stack, counts, stored);
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
