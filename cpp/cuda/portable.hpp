// CUDA's words, for nvcc and for the host: under a C++ compiler kernels run on emulated threads (emulated/simt.hpp), for tests.
//
// What is written for both worlds uses CUDA's own names, and these instead of what only nvcc can parse:
//   launch(kernel, blocks, block, shared_bytes, stream, arguments...)  for kernel<<<...>>>(arguments...)
//   MASKATTN_SHARED T name[N];                                         for static __shared__
//   T* p = dynamic_shared<T>();                                        for extern __shared__, aligned to 1024 bytes
//   named_barrier_sync(id, threads), named_barrier_arrive(...)         for bar.sync and bar.arrive
// Grids have one axis, on which two thousand million blocks have room; on the others it is 65,535.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define MASKATTN_HD __host__ __device__
#define MASKATTN_SHARED __shared__
#elif defined(MASKATTN_EMULATE_CUDA)
#include "cuda/emulated/simt.hpp"
#define MASKATTN_HD
#define MASKATTN_SHARED static thread_local
#else
#define MASKATTN_HD
#endif

namespace maskattn::cuda {

using Stream = void*;  // a cudaStream_t

#if defined(__CUDACC__) || defined(MASKATTN_EMULATE_CUDA)
inline dim3 grid_of(std::int64_t blocks) {
  constexpr std::int64_t most = 0x7fffffff;
  if (blocks > most)
    throw std::invalid_argument("a call must be of at most 2147483647 blocks of threads on CUDA, got " + std::to_string(blocks) +
                                "; split its batch");
  return dim3(static_cast<unsigned>(blocks));
}
#endif

#if defined(__CUDACC__)

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// Blocks may ask for more than 48 KB of shared memory. No block is no launch.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, dim3 block, std::size_t shared_bytes, Stream stream,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  constexpr std::size_t without_asking = 48 * 1024;
  if (shared_bytes > without_asking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "shared memory of a kernel");
  kernel<<<grid_of(blocks), block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), "launch of a kernel");
}

// A kernel that begins where it may (sm_90 on) before the one launched last has ended: with wait_for_previous_kernel(), after
// which it sees what that one has written. That one says let_next_kernel_begin(), when its blocks need no more room.
template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), std::int64_t blocks, dim3 block, std::size_t shared_bytes, Stream stream,
                  const Arguments&... arguments) {
  cudaFuncAttributes compiled{};
  check(cudaFuncGetAttributes(&compiled, kernel), "properties of a kernel");
  // What was compiled for less has no wait, even on a device of sm_90.
  if (compiled.ptxVersion < 90 || blocks == 0) return launch(kernel, blocks, block, shared_bytes, stream, arguments...);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{grid_of(blocks), block, shared_bytes, static_cast<cudaStream_t>(stream), &early, 1};
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launch of a kernel");
}
__device__ inline void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char maskattn_dynamic_shared[];
  return reinterpret_cast<T*>(maskattn_dynamic_shared);
}

// Where PTX wants a shared address as a number.
__device__ inline std::uint32_t shared_address(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

// `threads`, a multiple of 32, is how many threads meet at the barrier: those that wait and those that only arrive.
__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#elif defined(MASKATTN_EMULATE_CUDA)

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, dim3 block, std::size_t shared_bytes, Stream,
            const Arguments&... arguments) {
  emulated::run_grid(grid_of(blocks), block, shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

template <class... Parameters, class... Arguments>
void launch_early(void (*kernel)(Parameters...), std::int64_t blocks, dim3 block, std::size_t shared_bytes, Stream stream,
                  const Arguments&... arguments) {
  launch(kernel, blocks, block, shared_bytes, stream, arguments...);
}
inline void let_next_kernel_begin() {}
inline void wait_for_previous_kernel() {}

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulated::dynamic_shared_memory());
}
inline std::uint32_t shared_address(const void* p) { return emulated::shared_address(p); }
inline void named_barrier_sync(int id, int threads) { emulated::barrier(id, threads, true); }
inline void named_barrier_arrive(int id, int threads) { emulated::barrier(id, threads, false); }

#endif

}  // namespace maskattn::cuda
