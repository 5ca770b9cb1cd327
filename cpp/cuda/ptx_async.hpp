// Asynchronous copies of a thread from global to shared memory (sm_80 on): cp.async and its groups.
#pragma once

#include "cuda/portable.hpp"

#if defined(MASKATTN_EMULATE_CUDA)
#include "cuda/emulated/async.hpp"
#endif

namespace maskattn::cuda {

#if defined(__CUDACC__)

// 16 bytes, of which the first `bytes` are read and the others are zero; both addresses are multiples of 16.
__device__ inline void copy_async(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
// Copies since the last commit form a group.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kGroups of this thread's groups are under way.
template <int kGroups>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#endif

}  // namespace maskattn::cuda
