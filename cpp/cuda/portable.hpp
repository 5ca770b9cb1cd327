// CUDA's words, for nvcc and for the host: under a C++ compiler kernels run on emulated threads (emulated/simt.hpp), for tests.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define MASKATTN_HD __host__ __device__
#elif defined(MASKATTN_EMULATE_CUDA)
#include "cuda/emulated/simt.hpp"
#define MASKATTN_HD
#else
#define MASKATTN_HD
#endif

namespace maskattn::cuda {
using Stream = void*;  // a cudaStream_t
}
