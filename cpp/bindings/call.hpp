// The arguments that attention's functions have in common, checked and borrowed.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "borrow.hpp"
#include "maskattn/attention.hpp"
#include "plans.hpp"

namespace maskattn {

using Doubles = py::array_t<double, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

// Borrows a (batch, heads, length, dim) array.
template <class Data>
Rows<Data> rows_of(const py::array& a, Dtype dtype, Data* data) {
  Rows<Data> rows{data, dtype, {}};
  const py::ssize_t *strides = a.strides(), item = static_cast<py::ssize_t>(size_of(dtype));
  for (int axis = 0; axis < 3; ++axis) rows.stride[axis] = strides[axis] / item;
  return rows;
}

// Sequences laid one behind the other in arrays of batch 1: where each begins, and how long it is.
struct Packed {
  std::vector<std::int64_t> q_starts, q_lengths, kv_starts, kv_lengths;

  // From cumulative lengths, which the Python function has checked.
  Packed(const std::vector<std::int64_t>& cu_q, const std::vector<std::int64_t>& cu_kv) {
    split(cu_q, q_starts, q_lengths);
    split(cu_kv, kv_starts, kv_lengths);
  }

 private:
  static void split(const std::vector<std::int64_t>& cumulative, std::vector<std::int64_t>& starts,
                    std::vector<std::int64_t>& lengths) {
    for (std::size_t i = 0; i + 1 < cumulative.size(); ++i) {
      starts.push_back(cumulative[i]);
      lengths.push_back(cumulative[i + 1] - cumulative[i]);
    }
  }
};

// A cache layer's arrays, as cache.py made them: k and v are pools of pages then.
struct Paged {
  py::array_t<std::int32_t, py::array::c_style> table;  // (batch, pages of a sequence)
  std::int64_t kv_len;
  std::optional<Floats> k_factors, v_factors;  // (pages, kv_heads, page_size) of int8 pools
};

// Softcap, sinks (q_heads,), what depends on the distance: table (q_heads, 2 reach + 1), slopes (q_heads,), and the precision.
struct Modifiers {
  double softcap;
  std::optional<Doubles> sinks, table, slopes;
  std::optional<int> precision;
};

// What all functions have in common; the arrays that AttentionInputs points into live here.
struct AttentionCall {
  AttentionInputs in{};
  std::optional<Packed> packed;
  std::optional<Paged> paged;
  std::optional<Modifiers> modifiers;
  std::shared_ptr<const MaskPlan> plan;
  std::vector<std::int64_t> kv_lengths, q_offset, q_rows;
  py::object bias;            // null: none, or one by distance
  py::ssize_t sequences = 0;  // of the arrays: 1 where sequences are packed
};

inline Dtype sum_dtype(const AttentionInputs& in) { return in.in_double() ? Dtype::float64 : Dtype::float32; }

using Extra = std::optional<py::tuple>;

// q, k and everything but the values; `packing`, `pages` and `modifiers` are tuples as _core.pyi says.
void take_common(AttentionCall& call, const py::array& q, const py::array& k, const Extra& packing, const Extra& pages,
                 const PlanHandle* mask, const py::object& bias, const py::object& scale, const py::object& kv_lengths,
                 const Extra& modifiers, const py::object& threads);
void take_values(AttentionCall& call, const py::array& k, const py::array& v);
// Fills `lengths`, one per sequence, and lets the inputs refer to them.
void take_lengths(AttentionInputs& in, const py::object& kv_lengths, std::vector<std::int64_t>& lengths);
// Where the first query of each sequence stands, which a bias by distance asks for.
void take_offsets(AttentionInputs& in, std::vector<std::int64_t>& offsets);
// Which rows of q are asked about: their shape is the answer's.
void take_rows(AttentionCall& call, const py::object& rows);

}  // namespace maskattn
