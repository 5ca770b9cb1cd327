// The pages of a cache as arrays of ours: what is appended, copied and moved.
#include "cuda/cache_append.hpp"

#include <pybind11/stl.h>

#include "cuda/bindings/call.hpp"
#include "cuda/decoder/elementwise.hpp"

namespace maskattn::cuda {
namespace {

using Ints = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;

// Of tokens and a pool that fit, by whoever has the tables; `table` names a page for every token.
void append_to(const Array& pool, const Array& tokens, const char* name, const MaybeArray& scales, const Array& table,
               const GivenIntegers& lengths, std::int64_t batch, Stream stream) {
  const auto* integers = static_cast<const std::int64_t*>(lengths.data);
  AppendCall call{static_cast<int>(batch),
                  static_cast<int>(pool.shape[1]),
                  static_cast<int>(tokens.shape[2]),
                  static_cast<int>(pool.shape[3]),
                  tokens.data,
                  float_dtype_of(tokens, name),
                  {tokens.strides[0], tokens.strides[1], tokens.strides[2], tokens.strides[3]},
                  pool.data,
                  scales ? Dtype::int8 : float_dtype_of(pool, "dtype"),
                  scales ? static_cast<float*>(scales->data) : nullptr,
                  static_cast<int>(pool.shape[2]),
                  static_cast<int>(table.shape[1]),
                  static_cast<const int*>(table.data),
                  integers,
                  integers + batch};
  append_tokens(call, stream);
}

// `lengths`: of each sequence, and behind them how many tokens each gets. Pools of int8 have scales.
void append_tokens_to(const Array& k_pool, const Array& v_pool, const MaybeArray& k_scales, const MaybeArray& v_scales,
                      const Array& k, const Array& v, const Array& table, const Integers& lengths, std::uintptr_t handle) {
  const Stream stream = stream_of(handle);
  Staged staged;
  const GivenIntegers sent = take(lengths, "lengths", stream, staged);
  append_to(k_pool, k, "k", k_scales, table, sent, lengths.size() / 2, stream);
  append_to(v_pool, v, "v", v_scales, table, sent, lengths.size() / 2, stream);
  let_go({&k_pool, &v_pool, pointer_to(k_scales), pointer_to(v_scales), &k, &v, &table}, stream);
}

// The first `slots` rows of pages, of a pool or of its scales, in the order of the pool's stream.
void copy_pages_of(const Array& pool, const Ints& sources, const Ints& targets, int slots) {
  const auto count = static_cast<std::size_t>(sources.size());
  if (count == 0 || slots == 0) return;
  const OnDevice current(pool.device);
  const DeviceMemory names(2 * count * sizeof(int), pool.stream);
  int* on_device = names.data<int>();
  send(on_device, sources.data(), count * sizeof(int), pool.stream);
  send(on_device + count, targets.data(), count * sizeof(int), pool.stream);
  const auto extent = [&](std::size_t axis) { return axis < pool.shape.size() ? static_cast<int>(pool.shape[axis]) : 1; };
  copy_pages({pool.data, extent(1), extent(2), extent(3), static_cast<int>(pool.item_bytes())}, static_cast<int>(count),
             on_device, on_device + count, slots, pool.stream);
}

// Elements of an array of the same dtype, both in C order, in the order of both streams.
void copy_from(const Array& pool, std::int64_t at, const Array& other, std::int64_t first, std::int64_t count) {
  if (count == 0) return;
  const OnDevice current(pool.device);
  const std::int64_t item = pool.item_bytes();
  wait_for(pool.stream, other.stream);
  copy(static_cast<char*>(pool.data) + at * item, static_cast<const char*>(other.data) + first * item,
       static_cast<std::size_t>(count * item), pool.stream);
  wait_for(other.stream, pool.stream);
}

}  // namespace

void register_cache(py::module_& m, py::class_<Array>& array) {
  array.def("copy_pages", &copy_pages_of, py::arg("sources"), py::arg("targets"), py::arg("slots"))
      .def("copy_from", &copy_from, py::arg("at"), py::arg("other"), py::arg("first"), py::arg("count"));
  m.def("append_tokens", &append_tokens_to);
  m.def("check_tokens", [](const Array& k, const Array& v) { float_dtype_of(k, "k"), float_dtype_of(v, "v"); });
}

}  // namespace maskattn::cuda
