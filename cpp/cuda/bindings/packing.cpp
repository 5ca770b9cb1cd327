// Sequences one behind the other: where each begins, and how long it is.
#include <pybind11/stl.h>

#include <utility>

#include "cuda/bindings/plans.hpp"

namespace maskattn::cuda {
namespace {

// From cumulative lengths [count + 1] of queries and keys. What the host has, it has checked; what the device has is cut to
// `tokens`, and to `most` a sequence.
Packing pack(const Given& cu_q, const Given& cu_kv, int count, std::pair<int, int> tokens, std::pair<int, int> most,
             std::uintptr_t handle) {
  const Stream stream = stream_of(handle);
  Packing p{count, most.first, most.second, tokens.first, tokens.second, nullptr, nullptr, nullptr, nullptr, nullptr, stream};
  p.memory = std::make_shared<DeviceMemory>(static_cast<std::size_t>(count) * 4 * sizeof(std::int64_t), stream);
  p.q_starts = p.memory->data<std::int64_t>();
  p.q_lengths = p.q_starts + count;
  p.kv_starts = p.q_lengths + count;
  p.kv_lengths = p.kv_starts + count;
  Staged staged;
  take_packed({take(cu_q, "cu_q", stream, staged), p.q_tokens, p.q_len, p.q_starts, p.q_lengths},
              {take(cu_kv, "cu_kv", stream, staged), p.kv_tokens, p.kv_len, p.kv_starts, p.kv_lengths}, count, stream);
  let_go({&cu_q, &cu_kv}, stream);
  return p;
}

}  // namespace

void register_packing(py::module_& m) {
  py::class_<Packing>(m, "Packing")
      .def_readonly("count", &Packing::count)
      .def_readonly("q_len", &Packing::q_len)
      .def_readonly("kv_len", &Packing::kv_len)
      .def_property_readonly("q_lengths", [](const Packing& p) { return integers_of(p.q_lengths, p.count, p.memory, p.stream); })
      .def_property_readonly("kv_lengths",
                             [](const Packing& p) { return integers_of(p.kv_lengths, p.count, p.memory, p.stream); });
  m.def("pack", &pack);
}

}  // namespace maskattn::cuda
