// A call of a stack, as Python gives it.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/bindings/decoder.hpp"

namespace maskattn::cuda {

// What a call borrows, and what must live until it is launched.
class CallHandle {
 public:
  CallHandle(DeviceStack& stack, const DevicePointer& device, const Ints& counts, const Ints& stored)
      : stack_(stack), device_(device), counts_(counts), stored_(stored) {
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
    const DeviceParts& parts = stack_.parts();
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
      require(keys.shape().size() == 4 && keys.kind() == stack_.parts().dtype, "pools must be of the stack's dtype");
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
    const auto& parts = stack_.parts();
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
    const DeviceParts& parts = stack_.parts();
    auto out = new_floats(device_, rows_, parts.out_width());
    call_.out = out->floats();
    py::list tapped;
    for (const int layer : taps) {
      auto states = new_floats(device_, rows_, parts.width);
      call_.taps.emplace_back(layer, states->floats());
      tapped.append(py::cast(std::move(states)));
    }
    {
      const py::gil_scoped_release unlocked;
      stack_.run(call_);
    }
    return py::make_tuple(py::cast(std::move(out)), tapped);
  }

 private:
  std::size_t layers() const { return stack_.parts().layers.size(); }

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

  DeviceStack& stack_;
  DevicePointer device_;
  Ints counts_, stored_;
  DeviceCall call_;
  int rows_ = 0, longest_ = 0;
  std::vector<py::object> kept_;
};

}  // namespace maskattn::cuda
