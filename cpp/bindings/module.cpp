// The compiled half of maskattn: borrow arrays, check, release the GIL, call the core.
#include "borrow.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  maskattn::register_runtime(m);
  maskattn::register_masks(m);
  maskattn::register_plans(m);
  maskattn::register_attention(m);
  maskattn::register_prepared(m);
  maskattn::register_linear(m);
  maskattn::register_layer_stack(m);
  maskattn::register_elementwise(m);
  maskattn::register_packed_linear(m);
  maskattn::register_dlpack(m);
}
