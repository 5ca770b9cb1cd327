// Rows of int8 with scales, and their way into shared memory as floats.
#pragma once

#include "cuda/ptx_mma.hpp"
#include "cuda/softmax.hpp"
#include "cuda/tile_copy.hpp"

namespace maskattn::cuda {

// The scales of one head's rows in pages, as float32.
__device__ inline RowsAt scales_at(const float* scales, const AttentionCall& call, int b, int h) {
  constexpr std::int64_t bytes = sizeof(float);
  return {reinterpret_cast<const char*>(scales) + bytes * h * call.page_size,
          bytes,
          bytes * call.kv_heads * call.page_size,
          call.page_table + static_cast<std::int64_t>(b) * call.pages_per_sequence,
          call.page_size,
          call.pages_per_sequence};
}

template <Dtype kType, int kNumbers>
__device__ uint4 chunk_of(const float (&x)[kNumbers]) {
  if constexpr (kType == Dtype::float32)
    return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
  else
    return {pack_16<kType>(x[0], x[1]), pack_16<kType>(x[2], x[3]), pack_16<kType>(x[4], x[5]), pack_16<kType>(x[6], x[7])};
}

// A row whose largest number, 127 times its scale, is beyond kType becomes NaN, which every result shows that it is part of: a
// score of minus infinity would look like a key that is not seen.
template <Dtype kType>
__device__ float scale_within(float scale) {
  constexpr float infinity = -kMinusInfinity, rounds_to_it = kType == Dtype::float16    ? 65520.f
                                                             : kType == Dtype::bfloat16 ? 0x1.ffp127f
                                                                                        : infinity;
  return 127.f * scale < rounds_to_it ? scale : __int_as_float(0x7fc00000);
}

// As copy_tile(), of int8 times scale(row), rounded to kType; `columns` numbers of a row exist. `aligned`: they are a multiple of
// those in a chunk, and all rows begin at multiples of as many bytes.
template <Dtype kType, int kRows, int kRowBytes, int kThreads, class Address, class Scale>
__device__ void widen_tile(char* to, int columns, bool aligned, const Address& address, const Scale& scale) {
  constexpr int kNumbers = kType == Dtype::float32 ? 4 : 8, kChunks = kRowBytes / 16, kRowsAtOnce = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0 && kRows % kRowsAtOnce == 0);
  const int chunk = threadIdx.x % kChunks, column = chunk * kNumbers;
#pragma unroll 4
  for (int row = threadIdx.x / kChunks; row < kRows; row += kRowsAtOnce) {
    const char* const from = address(row);
    float x[kNumbers] = {};
    if (from && column < columns) {
      const auto* const bytes = reinterpret_cast<const std::int8_t*>(from) + column;
      if (aligned) {
        load_floats<std::int8_t, kNumbers>(bytes, x);
      } else {
#pragma unroll
        for (int n = 0; n < kNumbers; ++n)
          if (column + n < columns) x[n] = to_float(bytes[n]);
      }
      const float factor = scale_within<kType>(scale(row));
#pragma unroll
      for (float& each : x) each *= factor;
    }
    *reinterpret_cast<uint4*>(to + swizzled<kRowBytes>(row, chunk)) = chunk_of<kType>(x);
  }
}

}  // namespace maskattn::cuda
