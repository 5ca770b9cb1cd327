#include "maskattn/attention.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "borrow.hpp"
#include "plans.hpp"

namespace maskattn {
namespace {

// Borrows a (batch, heads, length, dim) array.
template <class T>
Rows<const T> rows_of(const py::array& a) {
  Rows<const T> rows{static_cast<const T*>(a.data()), {}};
  for (int axis = 0; axis < 3; ++axis) rows.stride[axis] = a.strides(axis) / a.itemsize();
  return rows;
}

void require_rank4(const py::array& a, const char* name, const char* shape) {
  if (a.ndim() != 4) bad_value(std::string(name) + " must have shape " + shape + ", got " + describe(a));
}

void require_extent(const py::array& a, const char* name, int axis, const char* what, py::ssize_t want, const char* of) {
  if (a.shape(axis) != want)
    bad_value(std::string(name) + " must have " + of + "'s " + what + " " + std::to_string(want) + ", got " +
              std::to_string(a.shape(axis)) + " (" + describe(a) + ")");
}

template <class T>
void require_dtype(const py::array& a, const char* name) {
  if (!has_dtype<T>(a))
    bad_type(std::string(name) + " must have the dtype of q, " + std::string(py::str(py::dtype::of<T>())) + ", got " +
             std::string(py::str(a.dtype())) + "; pass " + name + ".astype(q.dtype)");
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

// What attention() and attention_weights() have in common: q, k, mask, bias, lengths.
template <class T>
struct Call {
  AttentionInputs<T> in;
  std::vector<std::int64_t> kv_lengths;
  py::array bias;
};

template <class T>
void take_packed(AttentionInputs<T>& in, const Packed& packed) {
  const auto longest = [](const std::vector<std::int64_t>& lengths) {
    return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  };
  in.batch = static_cast<std::int64_t>(packed.q_starts.size());
  in.q_len = longest(packed.q_lengths);
  in.kv_len = longest(packed.kv_lengths);
  in.q_lengths = packed.q_lengths.data();
  in.kv_lengths = packed.kv_lengths.data();
  in.q.stride[0] = in.k.stride[0] = 0;
  in.q.starts = packed.q_starts.data();
  in.k.starts = packed.kv_starts.data();
}

template <class T>
void take_queries_and_keys(AttentionInputs<T>& in, const py::array& q, const py::array& k) {
  require_dtype<T>(k, "k");
  require_rank4(q, "q", "(batch, q_heads, q_len, head_dim)");
  require_rank4(k, "k", "(batch, kv_heads, kv_len, head_dim)");
  require_extent(k, "k", 0, "batch", q.shape(0), "q");
  require_extent(k, "k", 3, "head_dim", q.shape(3), "q");
  if (k.shape(1) == 0 ? q.shape(1) != 0 : q.shape(1) % k.shape(1) != 0)
    bad_value("k must have a number of heads that divides q's " + std::to_string(q.shape(1)) + ", got " +
              std::to_string(k.shape(1)) + " (" + describe(k) + ")");
  if (q.shape(3) < 1) bad_value("q must have a head_dim of at least 1, got " + describe(q));
  require_contiguous_rows(q, "q");
  require_contiguous_rows(k, "k");
  in.batch = q.shape(0);
  in.q_heads = q.shape(1);
  in.kv_heads = k.shape(1);
  in.q_len = q.shape(2);
  in.kv_len = k.shape(2);
  in.head_dim = q.shape(3);
  in.q = rows_of<T>(q);
  in.k = rows_of<T>(k);
}

// A plan knows its lengths and offsets; without one, only lengths matter (every key that exists is seen).
template <class T>
void take_mask(Call<T>& call, const MaskPlan* plan, const py::object& kv_lengths) {
  AttentionInputs<T>& in = call.in;
  if (plan) {
    const Geometry& g = plan->geometry();
    if (g.q_len != in.q_len || g.kv_len != in.kv_len || (g.batch != 1 && g.batch != in.batch) ||
        (g.heads != 1 && g.heads != in.q_heads))
      bad_value("mask must be planned for (batch, q_heads, q_len, kv_len) = " +
                shape_text({in.batch, in.q_heads, in.q_len, in.kv_len}) + " (batch and heads may be 1), got a plan for " +
                shape_text({g.batch, g.heads, g.q_len, g.kv_len}));
    in.mask = plan;
    return;
  }
  if (kv_lengths.is_none()) return;
  call.kv_lengths = integers_per_sequence(kv_lengths, "kv_lengths", in.batch);
  if (call.kv_lengths.size() == 1) call.kv_lengths.resize(static_cast<std::size_t>(in.batch), call.kv_lengths[0]);
  for (const std::int64_t length : call.kv_lengths)
    if (length < 0 || length > in.kv_len)
      bad_value("kv_lengths must be from 0 to kv_len = " + std::to_string(in.kv_len) + ", got " + std::to_string(length));
  in.kv_lengths = call.kv_lengths.data();
}

template <class T>
void take_bias(Call<T>& call, const py::object& bias) {
  if (bias.is_none()) return;
  AttentionInputs<T>& in = call.in;
  call.bias = as_array(bias, "bias");
  require_dtype<T>(call.bias, "bias");
  const std::vector<std::int64_t> full = {in.batch, in.q_heads, in.q_len, in.kv_len};
  std::ptrdiff_t strides[4] = {};
  bool fits = call.bias.ndim() <= 4;
  for (py::ssize_t axis = 0; fits && axis < call.bias.ndim(); ++axis) {
    const auto to = static_cast<std::size_t>(axis + 4 - call.bias.ndim());
    fits = call.bias.shape(axis) == 1 || call.bias.shape(axis) == full[to];
    if (call.bias.strides(axis) % call.bias.itemsize() != 0)
      bad_value("bias must have strides that are multiples of its item size; pass np.ascontiguousarray(bias)");
    strides[to] = call.bias.shape(axis) == 1 ? 0 : call.bias.strides(axis) / call.bias.itemsize();
  }
  if (!fits)
    bad_value("bias must be broadcastable to (batch, q_heads, q_len, kv_len) = " + shape_text(full) + ", got " +
              describe(call.bias));
  in.bias = {static_cast<const T*>(call.bias.data()), {strides[0], strides[1], strides[2]}};
  in.bias_key_stride = strides[3];
}

template <class T>
void take_common(Call<T>& call, const py::array& q, const py::array& k, const Packed* packed, const MaskPlan* mask,
                 const py::object& bias, const py::object& scale, const py::object& kv_lengths, const py::object& threads) {
  take_queries_and_keys(call.in, q, k);
  if (packed) take_packed(call.in, *packed);
  take_mask(call, mask, kv_lengths);
  take_bias(call, bias);
  call.in.scale = scale.is_none() ? 1 / std::sqrt(static_cast<double>(call.in.head_dim)) : number(scale, "scale");
  if (!std::isfinite(call.in.scale)) bad_value("scale must be finite, got " + std::to_string(call.in.scale));
  call.in.threads = thread_count(threads);
}

// True where the arrays' memory may overlap; strides may be negative.
bool may_overlap(const py::array& a, const py::array& b) {
  const auto extent = [](const py::array& x) {
    const char *low = static_cast<const char*>(x.data()), *high = low + x.itemsize();
    for (py::ssize_t axis = 0; axis < x.ndim(); ++axis) {
      if (x.shape(axis) == 0) return std::pair{low, low};
      const py::ssize_t reach = x.strides(axis) * (x.shape(axis) - 1);
      (reach < 0 ? low : high) += reach;
    }
    return std::pair{low, high};
  };
  const auto [a_low, a_high] = extent(a);
  const auto [b_low, b_high] = extent(b);
  return a_low < b_high && b_low < a_high;
}

template <class T>
py::array output_array(const py::object& out, const std::vector<std::int64_t>& shape,
                       std::initializer_list<std::pair<const char*, const py::array*>> inputs) {
  if (out.is_none()) return py::array_t<T>(shape);
  py::array a = as_array(out, "out");
  if (!has_dtype<T>(a))
    bad_type("out must have the dtype of q, " + std::string(py::str(py::dtype::of<T>())) + ", got " +
             std::string(py::str(a.dtype())));
  if (a.ndim() != 4 || !std::equal(shape.begin(), shape.end(), a.shape()))
    bad_value("out must have shape " + shape_text(shape) + ", got " + describe(a));
  require_contiguous_rows(a, "out");
  if (!a.writeable()) bad_value("out must be writeable, got a read-only array; pass out.copy()");
  for (const auto& [name, input] : inputs)
    if (*input && may_overlap(a, *input))
      bad_value(std::string("out must not share memory with ") + name + "; pass another array");
  return a;
}

template <class T>
py::object attention_typed(const py::array& q, const py::array& k, const py::array& v, const Packed* packed, const MaskPlan* mask,
                           const py::object& bias, const py::object& scale, const py::object& kv_lengths, bool return_lse,
                           const py::object& out, const py::object& threads) {
  Call<T> call;
  take_common(call, q, k, packed, mask, bias, scale, kv_lengths, threads);
  const AttentionInputs<T>& in = call.in;
  require_dtype<T>(v, "v");
  require_rank4(v, "v", "(batch, kv_heads, kv_len, v_head_dim)");
  require_extent(v, "v", 0, "batch", q.shape(0), "q");
  require_extent(v, "v", 1, "kv_heads", in.kv_heads, "k");
  require_extent(v, "v", 2, "kv_len", k.shape(2), "k");
  require_contiguous_rows(v, "v");
  const std::int64_t v_head_dim = v.shape(3);
  py::array result = output_array<T>(out, {q.shape(0), in.q_heads, q.shape(2), v_head_dim},
                                     {{"q", &q}, {"k", &k}, {"v", &v}, {"bias", &call.bias}});
  Rows<T> rows{static_cast<T*>(result.mutable_data()), {}};
  for (int axis = 0; axis < 3; ++axis) rows.stride[axis] = result.strides(axis) / result.itemsize();
  Rows<const T> values = rows_of<T>(v);
  std::optional<py::array_t<T>> lse;
  Rows<T> lse_rows;
  if (return_lse && packed) {
    lse.emplace(std::vector<py::ssize_t>{q.shape(2), in.q_heads});
    lse_rows = {lse->mutable_data(), {0, 1, in.q_heads}};
  } else if (return_lse) {
    lse.emplace(std::vector<py::ssize_t>{in.batch, in.q_heads, in.q_len});
    lse_rows = {lse->mutable_data(), {in.q_heads * in.q_len, in.q_len, 1}};
  }
  if (packed) {
    rows.stride[0] = values.stride[0] = 0;
    rows.starts = lse_rows.starts = packed->q_starts.data();
    values.starts = packed->kv_starts.data();
  }
  {
    const py::gil_scoped_release unlocked;
    attention(in, values, v_head_dim, rows, lse_rows);
  }
  if (lse) return py::make_tuple(result, *lse);
  return result;
}

template <class T>
py::object weights_typed(const py::array& q, const py::array& k, Stage stage, const MaskPlan* mask, const py::object& bias,
                         const py::object& scale, const py::object& kv_lengths, const py::object& threads) {
  Call<T> call;
  take_common<T>(call, q, k, nullptr, mask, bias, scale, kv_lengths, threads);
  py::array_t<T> result(std::vector<std::int64_t>{call.in.batch, call.in.q_heads, call.in.q_len, call.in.kv_len});
  T* data = result.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    attention_weights(call.in, stage, data);
  }
  return result;
}

[[noreturn]] void bad_dtype(const py::array& q) {
  bad_type("q must be float32 or float64, got " + std::string(py::str(q.dtype())) + "; pass q.astype(np.float32)");
}

}  // namespace

void register_attention(py::module_& m) {
  m.def("attention",
        [](const py::object& q_object, const py::object& k_object, const py::object& v_object, const py::object& cu_q,
           const py::object& cu_kv, const PlanHandle* plan, const py::object& bias, const py::object& scale,
           const py::object& kv_lengths, bool return_lse, const py::object& out, const py::object& threads) {
          const auto mask = plan ? plan->get() : nullptr;
          const py::array q = as_array(q_object, "q"), k = as_array(k_object, "k"), v = as_array(v_object, "v");
          std::optional<Packed> packed;
          if (!cu_q.is_none()) packed.emplace(cu_q.cast<std::vector<std::int64_t>>(), cu_kv.cast<std::vector<std::int64_t>>());
          const auto call = [&](auto type) {
            return attention_typed<decltype(type)>(q, k, v, packed ? &*packed : nullptr, mask.get(), bias, scale, kv_lengths,
                                                   return_lse, out, threads);
          };
          if (has_dtype<float>(q)) return call(float{});
          if (has_dtype<double>(q)) return call(double{});
          bad_dtype(q);
        });
  m.def("attention_weights",
        [](const py::object& q_object, const py::object& k_object, const std::string& stage_name, const PlanHandle* plan,
           const py::object& bias, const py::object& scale, const py::object& kv_lengths, const py::object& threads) {
          const auto mask = plan ? plan->get() : nullptr;
          const py::array q = as_array(q_object, "q"), k = as_array(k_object, "k");
          const Stage stage = stage_name == "softmax" ? Stage::softmax : stage_name == "bias" ? Stage::bias : Stage::scores;
          if (has_dtype<float>(q)) return weights_typed<float>(q, k, stage, mask.get(), bias, scale, kv_lengths, threads);
          if (has_dtype<double>(q)) return weights_typed<double>(q, k, stage, mask.get(), bias, scale, kv_lengths, threads);
          bad_dtype(q);
        });
}

}  // namespace maskattn
