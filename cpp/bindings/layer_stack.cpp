#include "maskattn/layer_stack.hpp"

#include <algorithm>
#include <memory>

#include <pybind11/stl.h>

#include "call.hpp"

namespace maskattn {
namespace {

// A stack as maskattn/decoder/core_layers.py describes it: tuples of maps, norms and numbers, whose arrays live as long as it
// does.
class StackHandle {
 public:
  StackHandle(const py::list& layers, std::int64_t width, bool before, bool after, bool parallel, const py::object& bias_table,
              bool rounds, const py::object& ends)
      : stack_(take_layers(layers), width, {before, after, parallel}, take_bias(bias_table),
               rounds ? Dtype::bfloat16 : Dtype::float32, take_ends(ends, width)) {}

  const LayerStack& stack() const { return stack_; }

 private:
  std::vector<StackLayer> take_layers(const py::list& layers) {
    std::vector<StackLayer> taken;
    for (const py::handle& item : layers) {
      const auto layer = item.cast<py::tuple>();
      const auto forward = layer[5].cast<py::tuple>();
      StackFeedForward feed_forward{map(forward[0]), map(forward[1]), {}, forward[3].cast<bool>()};
      if (!forward[2].is_none()) feed_forward.activation = static_cast<Activation>(forward[2].cast<int>());
      if (feed_forward.gated && !feed_forward.activation) bad_value("a gate must have an activation, got None");
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
            a[9].is_none() ? std::nullopt : std::optional(map(a[9])),
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

  std::optional<StackEnds> take_ends(const py::object& ends, std::int64_t width) {
    if (ends.is_none()) return {};
    const auto parts = ends.cast<py::tuple>(), norms = parts[5].cast<py::tuple>();
    StackEnds taken{{parts[0].cast<const PackedWeight&>(), parts[1].cast<float>(), floats(parts[2]), floats(parts[3]),
                     parts[3].is_none() ? 0 : parts[3].cast<Floats>().shape(0), parts[4].cast<std::int64_t>(), norm(parts[6])},
                    {}};
    if (taken.embedding.table.inputs() != width)
      bad_value("embeddings must be " + std::to_string(width) + " wide, got " + std::to_string(taken.embedding.table.inputs()));
    for (const py::handle& each : norms) taken.norms.push_back(*norm(each));
    return taken;
  }

  std::vector<py::object> kept_;
  LayerStack stack_;
};

// float32, or bfloat16, whose type NumPy does not know by itself: who calls gives no other.
Dtype dtype_of(const py::array& a) { return a.itemsize() == 4 ? Dtype::float32 : Dtype::bfloat16; }

// Strides in elements.
std::ptrdiff_t stride(const py::array& a, int axis) { return a.strides(axis) / a.itemsize(); }

using Counts = py::array_t<std::int64_t, py::array::c_style>;

// Cosines and sines of rows, or of none.
struct Turns {
  Turns(const py::object& turns, std::int64_t rows) {
    if (turns.is_none()) return;
    const auto both = turns.cast<py::tuple>();
    cosines = both[0].cast<Floats>();
    sines = both[1].cast<Floats>();
    for (const Floats& each : {cosines, sines})
      if (each.ndim() != 2 || each.shape(0) != rows || each.shape(1) != cosines.shape(1))
        bad_value("turns must be two arrays (" + std::to_string(rows) + ", rotary_dim / 2), got " + describe(each));
    half = cosines.shape(1);
  }

  Floats cosines, sines;
  std::int64_t half = 0;
};

// What a call borrows, and what must live until it is over.
class CallHandle {
 public:
  explicit CallHandle(const LayerStack& stack) : stack_(stack) {}

  void take_rows(py::array_t<float, py::array::c_style>& x, const Counts& counts) {
    std::int64_t rows = 0;
    for (py::ssize_t b = 0; b < counts.size(); ++b) {
      if (counts.data()[b] < 0) bad_value("counts must be 0 or more, got " + std::to_string(counts.data()[b]));
      rows += counts.data()[b];
    }
    if (x.ndim() != 2 || x.shape(1) != stack_.width() || x.shape(0) != rows)
      bad_value("x must have shape (" + std::to_string(rows) + ", " + std::to_string(stack_.width()) + "), got " + describe(x));
    call_.batch = counts.size();
    call_.counts = keep(counts).data();
    call_.x = x.mutable_data();
  }

  // One row of each sequence, whose values are not there yet.
  void take_steps(std::int64_t batch) {
    call_.batch = batch;
    py::array_t<std::int64_t> ones(batch);
    std::fill_n(ones.mutable_data(), batch, 1);
    call_.counts = static_cast<const Counts&>(keep(ones)).data();
  }

  void take_stored(const py::object& stored) {
    if (!stored.is_none()) call_.stored = of_batch(stored, "stored").data();
  }

  void take_caches(const py::object& caches) {
    if (caches.is_none()) return;
    for (const py::handle& layer : caches) call_.caches.push_back(cache_of(layer));
    of_every_layer(call_.caches.size(), "caches");
  }

  // Rows (row, sequence, position), behind take_rows and take_stored.
  void take_shared(const py::object& shared, std::int64_t rows) {
    if (shared.is_none()) return;
    const auto array = shared.cast<Counts>();
    if (array.ndim() != 2 || array.shape(1) != 3) bad_value("shared must have shape (n, 3), got " + describe(array));
    for (py::ssize_t i = 0; i < array.shape(0); ++i) {
      const std::int64_t *s = array.data(i, 0), row = s[0], sequence = s[1], position = s[2];
      if (row < 0 || row >= rows || sequence < 0 || sequence >= call_.batch || position < 0 || !call_.stored ||
          position >= call_.stored[sequence])
        bad_value("shared must be rows, sequences and positions that they have stored, got " + std::to_string(row) + ", " +
                  std::to_string(sequence) + ", " + std::to_string(position));
      call_.shared.push_back({row, sequence, position});
    }
  }

  void take_masks(const py::object& masks) {
    if (masks.is_none()) return;
    for (const py::handle& mask : masks) call_.masks.push_back(mask.is_none() ? nullptr : mask.cast<MaskHandle>().mask);
    of_every_layer(call_.masks.size(), "masks");
  }

  void take_memory(const py::object& memory) {
    if (memory.is_none() && stack_.reads_memory()) bad_value("memory must be given to layers with cross-attention, got None");
    if (memory.is_none()) return;
    const auto parts = memory.cast<py::tuple>();
    const Counts &starts = of_batch(parts[1], "starts"), &lengths = of_batch(parts[2], "lengths");
    for (const py::handle& pair : parts[0]) call_.memories.push_back(memory_of(pair, starts, lengths));
    of_every_layer(call_.memories.size(), "keys and values of memory");
    call_.memory_lengths = lengths.data();
    for (std::int64_t b = 0; b < call_.batch; ++b) call_.memory_len = std::max(call_.memory_len, lengths.data()[b]);
  }

  // The turns live as long as the caller keeps them.
  void take_turns(const Turns& turns) {
    call_.cosines = turns.cosines.data();
    call_.sines = turns.sines.data();
    call_.rotary_half = turns.half;
  }

  // The states behind a token of each sequence.
  py::array_t<float> step(const Counts& tokens, const Counts& stored, const py::object& turns, int threads) {
    check_batch(tokens, "tokens");
    check_batch(stored, "stored");
    for (std::int64_t b = 0; b < call_.batch; ++b)
      if (tokens.data()[b] < 0 || tokens.data()[b] >= stack_.vocab())
        bad_value("tokens must be from 0 to " + std::to_string(stack_.vocab() - 1) + ", got " + std::to_string(tokens.data()[b]));
    const Turns turned(turns, call_.batch);
    py::array_t<float> x({call_.batch, stack_.width()});
    take_turns(turned);
    call_.x = x.mutable_data();
    call_.stored = stored.data();
    call_.threads = threads;
    const py::gil_scoped_release unlocked;
    stack_.step(call_, tokens.data());
    return x;
  }

  void run(int threads) {
    call_.threads = threads;
    const py::gil_scoped_release unlocked;
    stack_.run(call_);
  }

 private:
  template <class Array>
  const Array& keep(const Array& array) {
    kept_.push_back(std::make_unique<py::array>(array));
    return static_cast<const Array&>(*kept_.back());
  }

  const Counts& of_batch(const py::handle& item, const char* name) {
    const Counts& array = keep(item.cast<Counts>());
    check_batch(array, name);
    return array;
  }

  void check_batch(const Counts& array, const char* name) const {
    if (array.ndim() != 1 || array.size() != call_.batch)
      bad_value(std::string(name) + " must have shape (" + std::to_string(call_.batch) + ",), got " + describe(array));
  }

  void of_every_layer(std::size_t count, const char* name) const {
    if (count != stack_.layers())
      bad_value(std::string(name) + " must be of " + std::to_string(stack_.layers()) + " layers, got " + std::to_string(count));
  }

  StackCache cache_of(const py::handle& layer) {
    const py::array &keys = keep(layer.attr("k_pool").cast<py::array>()), &values = keep(layer.attr("v_pool").cast<py::array>());
    const auto& table = keep(layer.attr("tables").cast<py::array_t<std::int32_t, py::array::c_style>>());
    if (keys.ndim() != 4 || values.ndim() != 4 || table.ndim() != 2 || table.shape(0) != call_.batch)
      bad_value("caches must hold " + std::to_string(call_.batch) + " sequences, got tables " + describe(table));
    return {dtype_of(keys),
            const_cast<void*>(keys.data()),
            const_cast<void*>(values.data()),
            {stride(keys, 0), stride(keys, 1), stride(keys, 2)},
            table.data(),
            table.shape(1),
            keys.shape(2)};
  }

  // Keys and values (tokens, heads, head_dim) of packed sequences.
  StackMemory memory_of(const py::handle& pair, const Counts& starts, const Counts& lengths) {
    const auto both = pair.cast<py::tuple>();
    const auto rows = [&](const py::handle& item) {
      const py::array& a = keep(item.cast<py::array>());
      for (std::int64_t b = 0; b < call_.batch; ++b)
        if (a.ndim() != 3 || starts.data()[b] < 0 || lengths.data()[b] < 0 || starts.data()[b] + lengths.data()[b] > a.shape(0))
          bad_value("memory must hold what starts and lengths say, got " + describe(a));
      return Rows<const void>{a.data(), dtype_of(a), {0, stride(a, 1), stride(a, 0)}, starts.data()};
    };
    return {rows(both[0]), rows(both[1])};
  }

  const LayerStack& stack_;
  StackCall call_;
  std::vector<std::unique_ptr<py::array>> kept_;
};

// x (rows, width) becomes the states behind the layers; see LayerStack.run in _core.pyi.
void run(const StackHandle& handle, py::array_t<float, py::array::c_style>& x, const Counts& counts, const py::object& caches,
         const py::object& stored, const py::object& masks, const py::object& memory, const py::object& turns,
         const py::object& threads, const py::object& shared) {
  CallHandle call(handle.stack());
  call.take_rows(x, counts);
  call.take_stored(stored);
  call.take_shared(shared, x.shape(0));
  call.take_caches(caches);
  call.take_masks(masks);
  call.take_memory(memory);
  const Turns turned(turns, x.shape(0));
  call.take_turns(turned);
  call.run(thread_count(threads));
}

// Keys and values of the encoder's output x (rows, width), to `out` (layers, 2, heads, rows, head_dim) of float32 or bfloat16.
void remember(const StackHandle& handle, const py::array_t<float, py::array::c_style>& x, py::array& out,
              const py::object& threads) {
  const LayerStack& stack = handle.stack();
  const auto [inputs, outputs] = stack.memory_sizes();
  if (x.ndim() != 2 || x.shape(1) != inputs)
    bad_value("x must have shape (rows, " + std::to_string(inputs) + "), got " + describe(x));
  if (out.size() != x.shape(0) * outputs || !(out.flags() & py::array::c_style))
    bad_value("out must be contiguous, " + std::to_string(outputs) + " elements a row of x, got " + describe(out));
  const int team = thread_count(threads);
  void* to = out.mutable_data();
  const Dtype dtype = dtype_of(out);  // asks Python
  const py::gil_scoped_release unlocked;
  stack.remember(x.data(), x.shape(0), dtype, to, team);
}

// Steps of one token behind each sequence: caches and memory are looked at once, and not again for each.
class Steps {
 public:
  Steps(const StackHandle& handle, std::int64_t batch, const py::object& caches, const py::object& memory)
      : call_(handle.stack()) {
    if (!handle.stack().has_ends()) bad_value("steps must be of a stack with embeddings, got one without");
    call_.take_steps(batch);
    call_.take_caches(caches);
    call_.take_memory(memory);
  }

  py::array_t<float> run(const Counts& tokens, const Counts& stored, const py::object& turns, const py::object& threads) {
    return call_.step(tokens, stored, turns, thread_count(threads));
  }

 private:
  CallHandle call_;
};

}  // namespace

void register_layer_stack(py::module_& m) {
  py::class_<StackHandle>(m, "LayerStack")
      .def(py::init<const py::list&, std::int64_t, bool, bool, bool, const py::object&, bool, const py::object&>(),
           py::arg("layers"), py::arg("width"), py::arg("before"), py::arg("after"), py::arg("parallel"), py::arg("bias_table"),
           py::arg("rounds"), py::arg("ends"))
      .def("run", &run, py::arg("x").noconvert(), py::arg("counts"), py::arg("caches"), py::arg("stored"), py::arg("masks"),
           py::arg("memory"), py::arg("turns"), py::arg("threads"), py::arg("shared") = py::none())
      .def("remember", &remember, py::arg("x").noconvert(), py::arg("out").noconvert(), py::arg("threads"));
  py::class_<Steps>(m, "Steps")
      .def(py::init<const StackHandle&, std::int64_t, const py::object&, const py::object&>(), py::keep_alive<1, 2>(),
           py::arg("stack"), py::arg("batch"), py::arg("caches"), py::arg("memory"))
      .def("run", &Steps::run, py::arg("tokens"), py::arg("stored"), py::arg("turns"), py::arg("threads"));
}

}  // namespace maskattn
