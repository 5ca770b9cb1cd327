// The matrix of weights, or of scores, from Python.
#include "cuda/weights.hpp"

#include <pybind11/stl.h>

#include "cuda/bindings/call.hpp"

namespace maskattn::cuda {
namespace {

// Writes `out`, a new array of ours or of the caller's library, (batch, q_heads, rows, kv_len). `rows`: int32, from 0 to q_len
// - 1.
void weights_of(const Array& q, const Array& k, const Array& out, const Plan& plan, const MaybeArray& bias, double scale,
                double softcap, const MaybeArray& sinks, const MaybeArray& table, const MaybeArray& slopes, int precision,
                const MaybeArray& page_table, const MaybeArray& rows, bool softmax, std::uintptr_t handle) {
  const Stream stream = stream_of(handle);
  WeightsCall weights{};
  AttentionCall& call = weights.call;
  take_arrays(call, q, k, k, page_table, plan.extents.kv_len);
  take_plan(call, plan);
  take_terms(call, bias, scale, softcap, sinks, table, slopes, precision);
  if (out.size() == 0) return;
  weights.rows = rows ? static_cast<const int*>(rows->data) : nullptr;
  weights.row_count = static_cast<int>(out.shape[2]);
  weights.out = out.data;

  wait_for(stream, plan.stream);
  const auto offsets = take_offsets(call, plan, stream);
  const bool apart = softmax && call.dtype != Dtype::float32;
  const DeviceMemory scores(apart ? static_cast<std::size_t>(out.size()) * sizeof(float) : 0, stream);
  weights.scores = apart ? scores.data<float>() : static_cast<float*>(out.data);
  softmax ? attention_weights(weights, stream) : attention_scores(weights, stream);
  let_go(plan,
         {&q, &k, &out, pointer_to(bias), pointer_to(sinks), pointer_to(table), pointer_to(slopes), pointer_to(page_table),
          pointer_to(rows)},
         stream);
}

}  // namespace

void register_weights(py::module_& m) { m.def("attention_weights", &weights_of); }

}  // namespace maskattn::cuda
