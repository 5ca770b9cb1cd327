// The matrix of weights, or of scores, and what is made of it, from Python.
#include "cuda/weights.hpp"

#include <pybind11/stl.h>

#include "cuda/bindings/call.hpp"

namespace maskattn::cuda {
namespace {

// What all of them take, in the order of Python's arguments, and the memory that a call needs until it has been launched.
class Taken {
 public:
  Taken(const Array& q, const Array& k, const Plan& plan, const MaybeArray& bias, double scale, double softcap,
        const MaybeArray& sinks, const MaybeArray& table, const MaybeArray& slopes, int precision, const MaybePages& pages,
        std::uintptr_t handle)
      : stream(stream_of(handle)),
        plan_(plan),
        arrays_{&q, &k, pointer_to(bias), pointer_to(sinks), pointer_to(table), pointer_to(slopes)},
        pages_(pages) {
    take_arrays(call, q, k, k, pages, plan.extents.kv_len);
    take_plan(call, plan);
    take_terms(call, bias, scale, softcap, sinks, table, slopes, precision);
  }

  // Before anything is launched.
  void begin() {
    wait_for(stream, plan_.stream);
    offsets_ = take_offsets(call, plan_, stream);
  }

  // It has been launched, and reads or writes these, too.
  void launched(std::initializer_list<const Array*> others) const {
    let_go(plan_, {arrays_[0], arrays_[1], arrays_[2], arrays_[3], arrays_[4], arrays_[5]}, pages_, stream);
    let_go(others, stream);
  }

  AttentionCall call{};
  const Stream stream;

 private:
  const Plan& plan_;
  const std::array<const Array*, 6> arrays_;
  const MaybePages& pages_;
  std::unique_ptr<DeviceMemory> offsets_;
};

WeightsCall asked(const Taken& taken, const MaybeArray& rows, std::int64_t count) {
  return {taken.call, rows ? static_cast<const int*>(rows->data) : nullptr, static_cast<int>(count), nullptr, nullptr};
}

// Writes `out`, a new array of ours or of the caller's library, (batch, q_heads, rows, kv_len). `rows`: int32, from 0 to q_len
// - 1.
void weights_of(const Array& q, const Array& k, const Array& out, const Plan& plan, const MaybeArray& bias, double scale,
                double softcap, const MaybeArray& sinks, const MaybeArray& table, const MaybeArray& slopes, int precision,
                const MaybePages& pages, const MaybeArray& rows, bool softmax, std::uintptr_t handle) {
  Taken taken(q, k, plan, bias, scale, softcap, sinks, table, slopes, precision, pages, handle);
  if (out.size() == 0) return;
  taken.begin();
  WeightsCall weights = asked(taken, rows, out.shape[2]);
  weights.out = out.data;
  const bool apart = softmax && taken.call.dtype != Dtype::float32;
  const DeviceMemory scores(apart ? static_cast<std::size_t>(out.size()) * sizeof(float) : 0, taken.stream);
  weights.scores = apart ? scores.data<float>() : static_cast<float*>(out.data);
  softmax ? attention_weights(weights, taken.stream) : attention_scores(weights, taken.stream);
  taken.launched({&out, pointer_to(rows)});
}

// Writes `keys` and `largest`, (batch, q_heads, rows, count).
void largest_of(const Array& q, const Array& k, const Array& keys, const Array& largest, const Plan& plan, const MaybeArray& bias,
                double scale, double softcap, const MaybeArray& sinks, const MaybeArray& table, const MaybeArray& slopes,
                int precision, const MaybePages& pages, const MaybeArray& rows, std::uintptr_t handle) {
  Taken taken(q, k, plan, bias, scale, softcap, sinks, table, slopes, precision, pages, handle);
  if (keys.size() == 0) return;
  taken.begin();
  const WeightsCall weights = asked(taken, rows, keys.shape[2]);
  const DeviceMemory scratch(largest_scratch_bytes(weights), taken.stream);
  largest_weights({weights, static_cast<int>(keys.shape[3]), static_cast<std::int64_t*>(keys.data),
                   static_cast<float*>(largest.data), scratch.data<std::uint32_t>()},
                  taken.stream);
  taken.launched({&keys, &largest, pointer_to(rows)});
}

// Writes `sums`, (batch, q_heads, kv_len).
void per_key_of(const Array& q, const Array& k, const Array& sums, const Plan& plan, const MaybeArray& bias, double scale,
                double softcap, const MaybeArray& sinks, const MaybeArray& table, const MaybeArray& slopes, int precision,
                const MaybePages& pages, std::uintptr_t handle) {
  Taken taken(q, k, plan, bias, scale, softcap, sinks, table, slopes, precision, pages, handle);
  if (sums.size() == 0) return;
  taken.begin();
  const auto rows = static_cast<std::size_t>(q.shape[0] * q.shape[1] * q.shape[2]);
  const DeviceMemory scratch(rows * 2 * sizeof(float), taken.stream);
  weights_per_key(taken.call, scratch.data<float>(), static_cast<float*>(sums.data), taken.stream);
  taken.launched({&sums});
}

}  // namespace

void register_weights(py::module_& m) {
  m.def("attention_weights", &weights_of);
  m.def("largest_weights", &largest_of);
  m.def("weights_per_key", &per_key_of);
}

}  // namespace maskattn::cuda
