// The three types in which weights, queries, keys and values are stored, as one for kernels that are written once.
#pragma once

#include <stdexcept>

#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

#if defined(__CUDACC__) || defined(MASKATTN_EMULATE_CUDA)
namespace maskattn::cuda {

MASKATTN_HD inline float as_float(float x) { return x; }
MASKATTN_HD inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
MASKATTN_HD inline float as_float(__half x) { return __half2float(x); }

// Rounded to nearest.
MASKATTN_HD inline void put(float* to, float x) { *to = x; }
MASKATTN_HD inline void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
MASKATTN_HD inline void put(__half* to, float x) { *to = __float2half_rn(x); }

// body(T{}) for the type that a dtype names.
template <class Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float32: return body(float{});
    case Dtype::bfloat16: return body(__nv_bfloat16{});
    case Dtype::float16: return body(__half{});
    default: throw std::invalid_argument("dtype must be float32, bfloat16 or float16 on a CUDA device");
  }
}

}  // namespace maskattn::cuda
#endif
