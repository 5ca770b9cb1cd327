// What a call of attention is about, taken from Python's arguments and checked. Errors read as those of the CPU's arrays do.
#pragma once

#include <array>
#include <initializer_list>
#include <memory>
#include <optional>
#include <tuple>

#include "cuda/attention.hpp"
#include "cuda/bindings/plans.hpp"

namespace maskattn::cuda {

using MaybeArray = std::optional<Array>;
// Of a cache: the table int32 (batch, pages of a sequence), and of int8 the scales float32 (pages, kv_heads, page_size) of keys
// and of values.
using MaybePages = std::optional<std::tuple<Array, MaybeArray, MaybeArray>>;
inline const Array* pointer_to(const MaybeArray& a) { return a ? &*a : nullptr; }

// Queries, keys, values: the shapes of the call. Keys and values are pools where there are pages.
void take_arrays(AttentionCall& call, const Array& q, const Array& k, const Array& v, const MaybePages& pages, int kv_len);
void take_results(AttentionCall& call, const Array& q, const Array& out, const MaybeArray& lse);
void take_plan(AttentionCall& call, const Plan& plan);

// What scores go through, behind the plan; what is not an array has been checked in Python.
void take_terms(AttentionCall& call, const MaybeArray& bias, double scale, double softcap, const MaybeArray& sinks,
                const MaybeArray& table, const MaybeArray& slopes, int precision);
// Positions for biases by distance, if the call has any, in memory that must live until the call has been launched.
std::unique_ptr<DeviceMemory> take_offsets(AttentionCall& call, const Plan& plan, Stream stream);

// As let_go() of arrays, of all that a call has used.
void let_go(const Plan& plan, std::initializer_list<const Array*> arrays, const MaybePages& pages, Stream stream);

}  // namespace maskattn::cuda
