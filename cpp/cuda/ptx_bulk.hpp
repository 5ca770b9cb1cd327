// Barriers in shared memory that count arrivals and bytes, and copies of boxes of a tensor by the copy engine (sm_90): mbarrier
// and cp.async.bulk.tensor, as PTX and, for tests, as software.
#pragma once

#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

#if defined(MASKATTN_EMULATE_CUDA)
#include "cuda/emulated/bulk.hpp"
#else
#include <cuda.h>
namespace maskattn::cuda {
using TensorMap = CUtensorMap;
}
#endif

namespace maskattn::cuda {

// A tensor of 16-bit elements whose first extent is contiguous, seen through boxes of 64 x 64 elements of the first two extents,
// which come to shared memory as panels (ptx_wgmma.hpp); what is outside is zero. Strides are in bytes.
struct TensorShape {
  const void* data;
  std::uint64_t extent[4], stride[3];  // stride[i] leads along extent[i + 1]
};
// data and strides are multiples of 16, and strides positive.
TensorMap tensor_map(const TensorShape& shape);

#if defined(__CUDACC__)

__device__ inline void barrier_init(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After barriers were initialised, for the copy engine.
__device__ inline void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and lets the phase wait for so many bytes more.
__device__ inline void barrier_arrive_expect(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Waits for the end of the phase of this parity: of the first phase 0, of the next 1.
__device__ inline void barrier_wait(std::uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nwait_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra wait_%=;\n}" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The box from element (column, row, h, b) on to `to`, a multiple of 1024; its bytes count for the barrier.
__device__ inline void copy_box(void* to, const TensorMap& map, int column, int row, int h, int b, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(h), "r"(b), "r"(shared_address(barrier))
      : "memory");
}
__device__ inline void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Between this thread's own writes to shared memory and wgmma or the copy engine.
__device__ inline void fence_for_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

}  // namespace maskattn::cuda
