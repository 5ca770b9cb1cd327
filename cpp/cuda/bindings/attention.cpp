// Attention from Python.
#include <pybind11/stl.h>

#include "cuda/bindings/call.hpp"

namespace maskattn::cuda {
namespace {

using MaybePacking = std::optional<Packing>;

// Packed (tokens, heads, dim) as (1, heads, tokens, dim).
Array four_axes(const Array& packed, const char* name) {
  if (packed.ndim() != 3) bad_value(std::string(name) + " must have shape (tokens, heads, dim), got " + packed.describe());
  Array view = packed;
  view.shape = {1, packed.shape[1], packed.shape[0], packed.shape[2]};
  view.strides = {0, packed.strides[1], packed.strides[0], packed.strides[2]};
  return view;
}

// What take_arrays has taken for one sequence becomes many.
void take_packing(AttentionCall& call, const Packing& packing) {
  call.batch = packing.count;
  call.q_len = packing.q_len;
  call.kv_len = packing.kv_len;
  call.kv_rows = packing.kv_tokens;
  call.q_lengths = packing.q_lengths;
  call.kv_lengths = packing.kv_lengths;
  call.q.starts = call.out.starts = packing.q_starts;
  call.k.starts = call.v.starts = packing.kv_starts;
}

// Of a call that is prepared, what attention_of will not be given anew.
void check_prepared(const Array& q, const Array& k, const Array& v, const Plan& plan, const MaybeArray& bias, double scale,
                    double softcap, const MaybeArray& sinks, const MaybeArray& table, const MaybeArray& slopes, int precision) {
  AttentionCall call{};
  take_arrays(call, q, k, v, std::nullopt, 0);
  take_plan(call, plan);
  take_terms(call, bias, scale, softcap, sinks, table, slopes, precision);
}

// Writes `out` and, if there is one, `lse`.
void attention_of(const Array& q, const Array& k, const Array& v, const Array& out, const MaybeArray& lse, const Plan& plan,
                  const MaybeArray& bias, double scale, double softcap, const MaybeArray& sinks, const MaybeArray& table,
                  const MaybeArray& slopes, int precision, const MaybePages& pages, const MaybePacking& packing,
                  std::uintptr_t handle) {
  const Stream stream = stream_of(handle);
  AttentionCall call{};
  if (packing) {
    take_arrays(call, four_axes(q, "q"), four_axes(k, "k"), four_axes(v, "v"), std::nullopt, 0);
    take_results(call, q, four_axes(out, "out"), lse);
    take_packing(call, *packing);
  } else {
    take_arrays(call, q, k, v, pages, plan.extents.kv_len);
    take_results(call, q, out, lse);
  }
  take_plan(call, plan);
  take_terms(call, bias, scale, softcap, sinks, table, slopes, precision);
  if (out.size() == 0 && (!lse || lse->size() == 0)) return;

  wait_for(stream, plan.stream);
  const auto offsets = take_offsets(call, plan, stream);
  const DeviceMemory workspace(workspace_bytes(call), stream);
  attention(call, workspace.data(), stream);
  let_go(plan, {&q, &k, &v, &out, pointer_to(lse), pointer_to(bias), pointer_to(sinks), pointer_to(table), pointer_to(slopes)},
         pages, stream);
}

}  // namespace

void register_attention(py::module_& m) {
  m.def("attention", &attention_of);
  m.def("check_prepared", &check_prepared);
  m.def("check_arrays", [](const Array& q, const Array& k, const Array& v, const MaybePages& pages) {
    AttentionCall call{};
    take_arrays(call, q, k, v, pages, 0);
  });
  m.def("check_packed", [](const Array& q, const Array& k, const Array& v) {
    AttentionCall call{};
    take_arrays(call, four_axes(q, "q"), four_axes(k, "k"), four_axes(v, "v"), std::nullopt, 0);
  });
}

}  // namespace maskattn::cuda
