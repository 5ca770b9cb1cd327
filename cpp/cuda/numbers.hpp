// Numbers as a device's memory holds them, and where the rows of arrays are. For kernels.
#pragma once

#include <stdexcept>

#include "cuda/attention.hpp"

namespace maskattn::cuda {

using Half = __half;
using Bfloat = __nv_bfloat16;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(std::int8_t x) { return static_cast<float>(x); }
__device__ inline float to_float(Half x) { return __half2float(x); }
__device__ inline float to_float(Bfloat x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float(float x) {
  return x;
}
template <>
__device__ inline Half from_float(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline Bfloat from_float(float x) {
  return __float2bfloat16_rn(x);
}

// Where the dtype is not known when kernels are compiled: element `at` of an array.
__device__ inline float read_float(const void* data, Dtype dtype, std::int64_t at) {
  switch (dtype) {
    case Dtype::float16: return to_float(static_cast<const Half*>(data)[at]);
    case Dtype::bfloat16: return to_float(static_cast<const Bfloat*>(data)[at]);
    default: return static_cast<const float*>(data)[at];
  }
}
__device__ inline void write_float(void* data, Dtype dtype, std::int64_t at, float x) {
  switch (dtype) {
    case Dtype::float16: static_cast<Half*>(data)[at] = from_float<Half>(x); break;
    case Dtype::bfloat16: static_cast<Bfloat*>(data)[at] = from_float<Bfloat>(x); break;
    default: static_cast<float*>(data)[at] = x;
  }
}

// kBytes (4, 8 or 16) at an address that is a multiple of that, as floats.
template <class T, int kBytes>
__device__ void load_floats(const void* from, float (&to)[kBytes / static_cast<int>(sizeof(T))]) {
  struct alignas(kBytes) Words {
    T x[kBytes / static_cast<int>(sizeof(T))];
  };
  const Words words = *static_cast<const Words*>(from);
#pragma unroll
  for (int i = 0; i < kBytes / static_cast<int>(sizeof(T)); ++i) to[i] = to_float(words.x[i]);
}

// function(T{}) with the type that a dtype stands for.
template <class Function>
void with_type(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::float32: return function(float{});
    case Dtype::float16: return function(Half{});
    case Dtype::bfloat16: return function(Bfloat{});
    default: throw std::invalid_argument("the CUDA kernels read float32, float16 and bfloat16");
  }
}

// function(T{}, Stored{}) with the types of q and of keys and values.
template <class Function>
void with_types(const AttentionCall& call, const Function& function) {
  with_type(call.dtype, [&](auto number) {
    if (call.k_scales)
      function(number, std::int8_t{});
    else
      function(number, number);
  });
}

// In elements from an array's data.
template <class Data>
__device__ std::int64_t row_offset(const Rows<Data>& rows, int b, int h, std::int64_t row) {
  return b * rows.stride[0] + h * rows.stride[1] + (row + (rows.starts ? rows.starts[b] : 0)) * rows.stride[2];
}

// The page of a key, where there are pages. Only for keys that some row sees: others may have none.
__device__ inline int page_of(const AttentionCall& call, int b, int key) {
  return call.page_table[static_cast<std::int64_t>(b) * call.pages_per_sequence + key / call.page_size % call.pages_per_sequence];
}

// Where the scale of a row in pages of int8 is.
__device__ inline std::int64_t scale_offset(const AttentionCall& call, int page, int h, int slot) {
  return (static_cast<std::int64_t>(page) * call.kv_heads + h) * call.page_size + slot;
}

// Queries of a sequence.
__device__ inline int queries_of(const AttentionCall& call, int b) {
  return call.q_lengths ? static_cast<int>(call.q_lengths[b]) : call.q_len;
}

// Keys of a sequence.
__device__ inline int keys_of(const AttentionCall& call, int b) {
  return call.kv_lengths ? static_cast<int>(call.kv_lengths[b]) : call.kv_len;
}

// `visible` without the keys of a tile that a packed sequence does not have, whatever its plan was made for.
__device__ inline std::uint64_t existing(const AttentionCall& call, int b, int kv_tile, std::uint64_t visible) {
  return call.kv_lengths ? visible & PlanView::keys_between({0, keys_of(call, b)}, kv_tile) : visible;
}

__device__ inline void store_lse(const AttentionCall& call, int b, int h, int query, float lse) {
  const std::int64_t row = call.q_lengths ? (call.out.starts[b] + query) * call.q_heads + h
                                          : (static_cast<std::int64_t>(b) * call.q_heads + h) * call.q_len + query;
  call.lse[row] = lse;
}

template <class T, class Data>
__device__ auto at(const Rows<Data>& rows, std::int64_t offset) {
  if constexpr (std::is_const_v<Data>)
    return static_cast<const T*>(rows.data) + offset;
  else
    return static_cast<T*>(rows.data) + offset;
}

// A key or value, wherever its page is: its numbers are data[d] * scale.
template <class Stored>
struct StoredRow {
  const Stored* data;
  float scale;
};
template <class Stored>
__device__ StoredRow<Stored> stored_row(const AttentionCall& call, const Rows<const void>& rows, const float* scales, int b,
                                        int h, int key) {
  if (!call.page_table) return {at<Stored>(rows, row_offset(rows, b, h, key)), 1.f};
  const int page = page_of(call, b, key), slot = key % call.page_size;
  const Stored* const data = at<Stored>(rows, page * rows.stride[0] + h * rows.stride[1] + slot * rows.stride[2]);
  if constexpr (std::is_same_v<Stored, std::int8_t>)
    return {data, scales[scale_offset(call, page, h, slot)]};
  else
    return {data, 1.f};
}

}  // namespace maskattn::cuda
