#include <stdexcept>

#include "cuda/ptx_bulk.hpp"

namespace maskattn::cuda {

#if defined(MASKATTN_EMULATE_CUDA)

TensorMap tensor_map(const TensorShape& shape) {
  TensorMap map{static_cast<const char*>(shape.data), {}, {}};
  for (int i = 0; i < 4; ++i) map.extent[i] = shape.extent[i];
  for (int i = 0; i < 3; ++i) {
    if (shape.stride[i] == 0 || shape.stride[i] % 16) throw std::invalid_argument("cuTensorMapEncodeTiled: strides");
    map.stride[i] = shape.stride[i];
  }
  return map;
}

#else

namespace {

// From the driver that is loaded, so that nothing must be linked with it.
decltype(&cuTensorMapEncodeTiled) encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "cuTensorMapEncodeTiled");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found), "cuTensorMapEncodeTiled");
#endif
  if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("CUDA: the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

TensorMap tensor_map(const TensorShape& shape) {
  static const auto encode = encoder();
  constexpr cuuint32_t box[] = {64, 64, 1, 1}, steps[] = {1, 1, 1, 1};
  const cuuint64_t extent[] = {shape.extent[0], shape.extent[1], shape.extent[2], shape.extent[3]};
  const cuuint64_t stride[] = {shape.stride[0], shape.stride[1], shape.stride[2]};
  TensorMap map;
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(shape.data), extent, stride, box,
                                 steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("CUDA: cuTensorMapEncodeTiled failed with error " + std::to_string(static_cast<int>(status)));
  return map;
}

#endif

}  // namespace maskattn::cuda
