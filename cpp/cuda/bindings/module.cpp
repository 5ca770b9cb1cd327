// The CUDA half of maskattn: arrays in and out, masks and attention on the device. Loaded on first use.
#include <utility>

#include "cuda/bindings/array.hpp"
#include "cuda/bindings/decoder.hpp"

PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
  maskattn::cuda::register_arrays(m);
  maskattn::cuda::register_plans(m);
  maskattn::cuda::register_packing(m);
  maskattn::cuda::register_attention(m);
  maskattn::cuda::register_weights(m);
  maskattn::cuda::register_merge(m);
  maskattn::cuda::register_device_arrays(m);
  maskattn::cuda::register_device_stacks(m);
  maskattn::cuda::register_device_heads(m);
#if defined(MASKATTN_EMULATE_CUDA)
  m.attr("emulated") = true;
  m.def("emulate", [](int compute_capability) {
    return std::exchange(maskattn::cuda::emulated::settings().compute_capability, compute_capability);
  });
#else
  m.attr("emulated") = false;
#endif
}
