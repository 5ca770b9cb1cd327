// The decoder's half of the module: arrays, stacks of layers and heads on a device of their own stream.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cuda/decoder/best.hpp"
#include "cuda/decoder/layer_stack.hpp"

namespace maskattn::cuda {

namespace py = pybind11;

namespace {

using DevicePointer = std::shared_ptr<DecoderDevice>;
using Ints = py::array_t<int, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Guard = std::lock_guard<std::mutex>;

// By NumPy's names, of which bfloat16 is not known to pybind11.
Dtype dtype_of(const py::dtype& dtype) {
  const auto name = dtype.attr("name").cast<std::string>();
  if (name == "float32") return Dtype::float32;
  if (name == "bfloat16") return Dtype::bfloat16;
  if (name == "float16") return Dtype::float16;
  throw py::type_error("dtype must be float32, bfloat16 or float16, got " + name);
}

// An array in C order. Whoever works on the device holds its lock, and not the GIL while waiting for it: a stream that another
// thread records a graph on takes nothing else.
class DeviceArray {
 public:
  DeviceArray(DevicePointer device, std::vector<std::int64_t> shape, py::dtype dtype)
      : device_(std::move(device)), shape_(std::move(shape)), dtype_(std::move(dtype)), kind_(dtype_of(dtype_)) {
    const py::gil_scoped_release unlocked;
    const Guard hold(device_->lock);
    memory_ = std::make_unique<DeviceMemory>(bytes(), stream());
  }
  ~DeviceArray() {
    const py::gil_scoped_release unlocked;
    const Guard hold(device_->lock);
    memory_.reset();
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  const std::vector<std::int64_t>& shape() const { return shape_; }
  const py::dtype& dtype() const { return dtype_; }
  Dtype kind() const { return kind_; }
  DecoderDevice& device() const { return *device_; }
  const DevicePointer& owner() const { return device_; }
  Stream stream() const { return device_->stream.get(); }
  char* data() const { return memory_->data<char>(); }
  std::int64_t size() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape_) product *= extent;
    return product;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * size_of(kind_); }
  int extent(std::size_t axis) const { return static_cast<int>(shape_.at(axis)); }

  // Elements from number `first` of the array on.
  void write(std::int64_t first, const py::array& values) {
    const auto count = static_cast<std::size_t>(values.nbytes());
    const auto at = static_cast<std::size_t>(first) * size_of(kind_);
    if (!values.dtype().equal(dtype_) || !(values.flags() & py::array::c_style) || at + count > bytes())
      throw py::value_error("values must be a contiguous array of the same dtype that fits");
    const void* from = values.data();
    const py::gil_scoped_release unlocked;
    const Guard hold(device_->lock);
    copy(data() + at, from, count, stream());
    synchronize(stream());
  }

  py::array numpy() const {
    py::array values(dtype_, shape_);
    void* to = values.mutable_data();
    const py::gil_scoped_release unlocked;
    const Guard hold(device_->lock);
    if (bytes() > 0) copy(to, data(), bytes(), stream());
    synchronize(stream());
    return values;
  }

  // Rows of an array (n, width); row -1 is zeros.
  std::unique_ptr<DeviceArray> gathered(const Ints& rows) const {
    if (shape_.size() != 2) throw py::value_error("rows are gathered of an array (n, width)");
    for (py::ssize_t i = 0; i < rows.size(); ++i)
      if (rows.data()[i] < -1 || rows.data()[i] >= shape_[0]) throw py::index_error("row " + std::to_string(rows.data()[i]));
    auto made = std::make_unique<DeviceArray>(device_, std::vector<std::int64_t>{rows.size(), shape_[1]}, dtype_);
    const py::gil_scoped_release unlocked;
    const Guard hold(device_->lock);
    const auto count = static_cast<std::size_t>(rows.size()) * sizeof(int);
    const DeviceMemory names(count, stream());
    if (count > 0) copy(names.data(), rows.data(), count, stream());
    gather(static_cast<int>(rows.size()), extent(1), static_cast<int>(size_of(kind_)), data(), names.data<int>(), made->data(), stream());
    return made;
  }

  // Of a pool (pages, heads, page_size, dim): the first `slots` rows of pages, copied to others.
  void copy_pages_within(const Ints& sources, const Ints& targets, int slots) {
    if (shape_.size() != 4 || sources.size() != targets.size() || slots > shape_[2])
      throw py::value_error("pages are copied one to one, up to page_size slots");
    const py::gil_scoped_release unlocked;
    const Guard hold(device_->lock);
    const auto count = static_cast<std::size_t>(sources.size());
    if (count == 0 || slots == 0) return;
    const DeviceMemory names(2 * count * sizeof(int), stream());
    int* on_device = names.data<int>();
    copy(on_device, sources.data(), count * sizeof(int), stream());
    copy(on_device + count, targets.data(), count * sizeof(int), stream());
    copy_pages({data(), extent(1), extent(2), extent(3), static_cast<int>(size_of(kind_))}, static_cast<int>(count), on_device,
               on_device + count, slots, stream());
  }

  // All of another array becomes the first part of this one.
  void begin_with(const DeviceArray& other) {
    if (other.bytes() > bytes()) throw py::value_error("the array is larger than what it is copied to");
    const py::gil_scoped_release unlocked;
    const Guard hold(device_->lock);
    if (other.bytes() > 0) copy(data(), other.data(), other.bytes(), stream());
  }

 private:
  DevicePointer device_;
  std::vector<std::int64_t> shape_;
  py::dtype dtype_;
  Dtype kind_;
  std::unique_ptr<DeviceMemory> memory_;
};

std::unique_ptr<DeviceArray> new_floats(const DevicePointer& device, std::int64_t rows, std::int64_t width) {
  return std::make_unique<DeviceArray>(device, std::vector<std::int64_t>{rows, width}, py::dtype::of<float>());
}

// A stack as maskattn/decoder/device/describe.py describes it: tuples of maps, norms and numbers, whose arrays live as long as it
// does.
class StackHandle {
 public:
  StackHandle(const DevicePointer& device, const py::dtype& dtype, int width, const py::tuple& placement, const py::list& layers,
              const py::object& bias_table, const py::object& embedding, const py::object& final_norm, const py::object& final_map)
      : device_(device) {
    DeviceParts parts{};
    parts.width = width;
    parts.dtype = dtype_of(dtype);
    parts.placement = {placement[0].cast<bool>(), placement[1].cast<bool>(), placement[2].cast<bool>()};
    for (const py::handle& item : layers) parts.layers.push_back(layer(item.cast<py::tuple>()));
    if (!bias_table.is_none()) {
      parts.bias_table = floats(bias_table);
      parts.bias_reach = bias_table.cast<const DeviceArray&>().extent(1) / 2;
    }
    if (!embedding.is_none()) parts.embedding = embedding_of(embedding.cast<py::tuple>());
    parts.final_norm = norm(final_norm);
    parts.final_map = map(final_map);
    stack_ = std::make_unique<DeviceStack>(device, std::move(parts));
  }

  DeviceStack& stack() const { return *stack_; }
  const DevicePointer& device() const { return device_; }

  // Keeps what a description names.
  DeviceMap map(const py::handle& item) {
    if (item.is_none()) return {};
    const auto pair = item.cast<py::tuple>();
    const auto& weight = keep(pair[0]);
    return {weight.data(), floats(pair[1]), weight.extent(0), weight.extent(1)};
  }

  Norm norm(const py::handle& item) {
    if (item.is_none()) return {};
    const auto n = item.cast<py::tuple>();
    return {floats(n[1]), floats(n[2]), n[3].cast<float>(), n[0].cast<bool>()};
  }

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
    return {map(a[0]), map(a[1]), norm(a[2]), norm(a[3]), a[4].cast<int>(), a[5].cast<int>(), a[6].cast<int>(),
            a[7].cast<float>(), a[8].cast<float>()};
  }

  DeviceEmbedding embedding_of(const py::tuple& e) {
    const auto& table = keep(e[0]);
    const float* positions = floats(e[4]);
    return {table.data(), table.extent(1), e[1].cast<float>(), map(e[2]), floats(e[3]), positions,
            positions ? e[4].cast<const DeviceArray&>().extent(0) : 0, e[5].cast<int>(), norm(e[6])};
  }

  const DeviceArray& keep(const py::handle& item) {
    kept_.push_back(py::reinterpret_borrow<py::object>(item));
    return item.cast<const DeviceArray&>();
  }
  const float* floats(const py::handle& item) {
    return item.is_none() ? nullptr : reinterpret_cast<const float*>(keep(item).data());
  }

  DevicePointer device_;
  std::vector<py::object> kept_;
  std::unique_ptr<DeviceStack> stack_;
};

void check(bool right, const char* text) {
  if (!right) throw py::value_error(text);
}

// What a call borrows, and what must live until it is launched.
class CallHandle {
 public:
  CallHandle(const StackHandle& handle, const Ints& counts, const Ints& stored) : handle_(handle), counts_(counts), stored_(stored) {
    check(counts.size() == stored.size(), "counts and stored must have one element a sequence");
    for (py::ssize_t b = 0; b < counts.size(); ++b) {
      check(counts.data()[b] >= 0 && stored.data()[b] >= 0, "counts and stored must be 0 or more");
      rows_ += counts.data()[b];
      longest_ = std::max(longest_, counts.data()[b]);
    }
    call_.batch = static_cast<int>(counts.size());
    call_.counts = counts.data();
    call_.stored = stored.data();
  }

  void take_rows(const py::object& tokens, const py::object& segments, const py::object& x) {
    const DeviceParts& parts = handle_.stack().parts();
    check(tokens.is_none() != x.is_none(), "tokens or x must be given, and not both");
    check(tokens.is_none() || parts.embedding, "tokens need a stack with embeddings");
    call_.tokens = numbers(tokens, rows_, "tokens must have one element a row");
    call_.segments = numbers(segments, rows_, "segments must have one element a row");
    call_.x = reals(x, std::int64_t{rows_} * parts.width, "x must have shape (rows, width)");
  }

  void take_cache(const py::object& pools, const py::object& tables) {
    if (pools.is_none()) return;
    for (const py::handle& item : pools) {
      const auto pair = item.cast<py::tuple>();
      const auto &keys = pair[0].cast<const DeviceArray&>(), &values = pair[1].cast<const DeviceArray&>();
      check(keys.shape().size() == 4 && keys.kind() == handle_.stack().parts().dtype, "pools must be of the stack's dtype");
      call_.pools.push_back({keys.data(), values.data()});
      call_.page_size = keys.extent(2);
    }
    check(call_.pools.size() == layers(), "pools must be one pair a layer");
    const auto table = tables.cast<Ints>();
    check(table.ndim() == 3 && table.shape(1) == call_.batch &&
              (table.shape(0) == 1 || table.shape(0) == static_cast<py::ssize_t>(layers())),
          "tables must have shape (layers or 1, batch, pages of a sequence)");
    call_.per_sequence = static_cast<int>(table.shape(2));
    call_.tables.assign(table.data(), table.data() + table.size());
    for (int b = 0; b < call_.batch; ++b)
      check(call_.stored[b] + call_.counts[b] <= call_.per_sequence * call_.page_size, "the cache has no room for these rows");
  }

  void take_masks(const py::list& masks, const std::vector<int>& mask_of_layer) {
    for (const py::handle& item : masks) {
      const auto spans = item.cast<Ints>();
      check(spans.ndim() == 4 && spans.shape(0) == call_.batch && spans.shape(1) == longest_ && spans.shape(3) == 2,
            "masks must be spans (batch, longest count, spans of a row, 2)");
      kept_.push_back(spans);
      call_.masks.push_back({reinterpret_cast<const Span*>(spans.data()), static_cast<int>(spans.shape(2))});
    }
    check(mask_of_layer.size() == layers(), "every layer must have a mask");
    for (const int mask : mask_of_layer) check(mask >= 0 && mask < static_cast<int>(call_.masks.size()), "unknown mask");
    call_.mask_of_layer = mask_of_layer;
  }

  void take_memory(const py::object& memory) {
    const auto& parts = handle_.stack().parts();
    const bool reads = std::any_of(parts.layers.begin(), parts.layers.end(), [](const DeviceLayer& l) { return l.cross.has_value(); });
    check(reads == !memory.is_none(), "memory must be given to layers with cross-attention, and to no others");
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
    check(call_.memories.size() == layers(), "memory must be one pair a layer");
    call_.memory_sources = numbers(item[1], call_.batch, "sources must have one element a sequence");
    call_.memory_lengths = numbers(item[2], call_.batch, "lengths must have one element a sequence");
    for (int b = 0; b < call_.batch; ++b)
      check(call_.memory_sources[b] >= 0 && call_.memory_sources[b] < sources && call_.memory_lengths[b] <= call_.memory_page,
            "memory must hold what sources and lengths say");
  }

  void take_turns(const py::object& turns) {
    if (turns.is_none()) return;
    const auto both = turns.cast<py::tuple>();
    const auto cosines = both[0].cast<Floats>();
    check(cosines.ndim() == 2 && cosines.shape(0) == rows_, "turns must be two arrays (rows, rotary_dim / 2)");
    call_.rotary_half = static_cast<int>(cosines.shape(1));
    call_.cosines = reals(both[0], cosines.size(), "turns must be alike");
    call_.sines = reals(both[1], cosines.size(), "turns must be alike");
  }

  py::tuple run(const std::vector<int>& taps) {
    const DeviceParts& parts = handle_.stack().parts();
    auto out = new_floats(handle_.device(), rows_, parts.out_width());
    call_.out = reinterpret_cast<float*>(out->data());
    py::list tapped;
    for (const int layer : taps) {
      auto states = new_floats(handle_.device(), rows_, parts.width);
      call_.taps.emplace_back(layer, reinterpret_cast<float*>(states->data()));
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
    check(array.size() == count, text);
    kept_.push_back(array);
    return array.data();
  }
  const float* reals(const py::handle& item, std::int64_t count, const char* text) {
    if (item.is_none()) return nullptr;
    const auto array = item.cast<Floats>();
    check(array.size() == count, text);
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
              const std::vector<int>& mask_of_layer, const py::object& memory, const py::object& turns, const std::vector<int>& taps) {
  CallHandle call(stack, counts, stored);
  call.take_rows(tokens, segments, x);
  call.take_cache(pools, tables);
  call.take_masks(masks, mask_of_layer);
  call.take_memory(memory);
  call.take_turns(turns);
  return call.run(taps);
}

// Keys and values (sources * page, heads, head_dim) of cross-attention, of rows x.
py::tuple project_memory(StackHandle& stack, const py::object& map, const py::object& norm, int heads, int head_dim,
                         const DeviceArray& x, const Ints& sources, const Ints& positions, int source_count, int page,
                         const py::dtype& dtype) {
  const DeviceMap in = stack.map(map);
  const Norm of_keys = stack.norm(norm);
  check(x.extent(1) == in.inputs && sources.size() == x.extent(0) && positions.size() == x.extent(0) &&
            in.outputs == 2 * heads * head_dim,
        "rows, sources and positions must belong together");
  const std::vector<std::int64_t> shape{std::int64_t{source_count} * page, heads, head_dim};
  auto keys = std::make_unique<DeviceArray>(stack.device(), shape, dtype), values = std::make_unique<DeviceArray>(stack.device(), shape, dtype);
  {
    const py::gil_scoped_release unlocked;
    stack.stack().project_memory(in, of_keys, heads, head_dim, x.extent(0), reinterpret_cast<const float*>(x.data()),
                                 sources.data(), positions.data(), keys->data(), values->data(), page);
  }
  return py::make_tuple(py::cast(std::move(keys)), py::cast(std::move(values)));
}

// cap(map(scale * hidden)): scores (rows, vocab), left on the device.
class HeadHandle {
 public:
  HeadHandle(const DevicePointer& device, const py::object& weight, const py::object& bias, float scale, float softcap)
      : device_(device), weight_(weight), bias_(bias), scale_(scale), softcap_(softcap) {}

  py::object scores(const DeviceArray& hidden) const {
    const auto& weight = weight_.cast<const DeviceArray&>();
    check(hidden.shape().size() == 2 && hidden.extent(1) == weight.extent(1), "hidden must have shape (rows, width)");
    auto made = new_floats(device_, hidden.extent(0), weight.extent(0));
    const MatrixProduct product{.rows = hidden.extent(0), .outputs = weight.extent(0), .inputs = weight.extent(1),
                                .dtype = weight.kind(), .x = nullptr, .weight = weight.data(),
                                .bias = bias_.is_none() ? nullptr : reinterpret_cast<const float*>(bias_.cast<const DeviceArray&>().data()),
                                .out = reinterpret_cast<float*>(made->data()), .scale = scale_};
    {
      const py::gil_scoped_release unlocked;
      const Guard hold(device_->lock);
      multiply(product, reinterpret_cast<const float*>(hidden.data()));
    }
    return py::cast(std::move(made));
  }

  // The `count` highest scores of each row, whose they are, and the logarithms of the sums of exp(score).
  py::tuple best(const DeviceArray& hidden, int count, bool with_sums) const {
    const py::object all = scores(hidden);
    const auto& of_rows = all.cast<const DeviceArray&>();
    BestCall call{of_rows.extent(0), of_rows.extent(1), count, reinterpret_cast<const float*>(of_rows.data()), nullptr, nullptr};
    check(count >= 1 && count <= call.width, "count must be from 1 to the number of scores");
    const auto rows = static_cast<std::size_t>(call.rows), many = rows * static_cast<std::size_t>(count);
    std::vector<Candidate> found(many);
    py::array_t<float> values({call.rows, count}), sums(with_sums ? call.rows : 0);
    py::array_t<std::int64_t> indices({call.rows, count});
    float* to_sums = sums.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      const Guard hold(device_->lock);
      const Stream stream = device_->stream.get();
      const DeviceMemory chosen(many * sizeof(Candidate), stream), logsumexp(rows * sizeof(float), stream),
          work(best_workspace_bytes(call), stream);
      call.found = chosen.data<Candidate>();
      call.logsumexp = with_sums ? logsumexp.data<float>() : nullptr;
      cuda::best(call, work.data(), stream);
      if (many > 0) copy(found.data(), chosen.data(), many * sizeof(Candidate), stream);
      if (with_sums && rows > 0) copy(to_sums, logsumexp.data(), rows * sizeof(float), stream);
      synchronize(stream);
    }
    for (std::size_t i = 0; i < many; ++i) {
      values.mutable_data()[i] = found[i].value;
      indices.mutable_data()[i] = found[i].index < call.width ? found[i].index : 0;  // no score of the row is a number
    }
    return py::make_tuple(values, indices, sums);
  }

 private:
  void multiply(MatrixProduct product, const float* hidden) const {
    const Stream stream = device_->stream.get();
    const std::int64_t count = std::int64_t{product.rows} * product.inputs;
    const DeviceMemory narrow(product.dtype == Dtype::float32 ? 0 : static_cast<std::size_t>(count) * size_of(product.dtype), stream);
    if (product.dtype != Dtype::float32) convert(count, hidden, narrow.data(), product.dtype, stream);
    product.x = product.dtype == Dtype::float32 ? static_cast<const void*>(hidden) : narrow.data();
    device_->products.multiply(product);
    if (softcap_ != 0) cap_scores(std::int64_t{product.rows} * product.outputs, product.out, softcap_, stream);
  }

  DevicePointer device_;
  py::object weight_, bias_;
  float scale_, softcap_;
};

}  // namespace

void register_decoder(py::module_& m) {
  py::class_<DecoderDevice, DevicePointer>(m, "DecoderDevice").def(py::init<const std::vector<std::string>&>(), py::arg("libraries"));
  py::class_<DeviceArray>(m, "DeviceArray")
      .def(py::init<DevicePointer, std::vector<std::int64_t>, py::dtype>(), py::arg("device"), py::arg("shape"), py::arg("dtype"))
      .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape())); })
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("nbytes", &DeviceArray::bytes)
      .def("write", &DeviceArray::write, py::arg("first"), py::arg("values"))
      .def("numpy", &DeviceArray::numpy)
      .def("gathered", &DeviceArray::gathered, py::arg("rows"))
      .def("copy_pages", &DeviceArray::copy_pages_within, py::arg("sources"), py::arg("targets"), py::arg("slots"))
      .def("begin_with", &DeviceArray::begin_with, py::arg("other"));
  py::class_<StackHandle>(m, "DeviceStack")
      .def(py::init<const DevicePointer&, const py::dtype&, int, const py::tuple&, const py::list&, const py::object&,
                    const py::object&, const py::object&, const py::object&>(),
           py::arg("device"), py::arg("dtype"), py::arg("width"), py::arg("placement"), py::arg("layers"), py::arg("bias_table"),
           py::arg("embedding"), py::arg("final_norm"), py::arg("final_map"))
      .def("run", &run, py::arg("tokens"), py::arg("segments"), py::arg("x"), py::arg("counts"), py::arg("stored"), py::arg("pools"),
           py::arg("tables"), py::arg("masks"), py::arg("mask_of_layer"), py::arg("memory"), py::arg("turns"), py::arg("taps"))
      .def("project_memory", &project_memory, py::arg("map"), py::arg("norm"), py::arg("heads"), py::arg("head_dim"), py::arg("x"),
           py::arg("sources"), py::arg("positions"), py::arg("source_count"), py::arg("page"), py::arg("dtype"))
      .def_property_readonly("graphs", [](const StackHandle& s) { return s.stack().graphs(); });
  py::class_<HeadHandle>(m, "DeviceHead")
      .def(py::init<const DevicePointer&, const py::object&, const py::object&, float, float>(), py::arg("device"),
           py::arg("weight"), py::arg("bias"), py::arg("scale"), py::arg("softcap"))
      .def("scores", &HeadHandle::scores, py::arg("hidden"))
      .def("best", &HeadHandle::best, py::arg("hidden"), py::arg("count"), py::arg("with_sums"));
}

}  // namespace maskattn::cuda
