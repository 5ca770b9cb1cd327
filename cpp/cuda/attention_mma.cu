// Attention of many rows on tensor cores: which of the kernels.
#include "cuda/mma_kernel.hpp"

namespace maskattn::cuda {
namespace {

template <class Operands, Dtype kType>
void launch_mma(const AttentionCall& call, Stream stream) {
  const int dim = std::max(call.head_dim, call.v_head_dim);
  using T = NumberOf<kType>;
  const auto plain = dim <= 64    ? launch_shape<Operands, 64, false, kType, T>
                     : dim <= 128 ? launch_shape<Operands, 128, false, kType, T>
                                  : launch_shape<Operands, 256, false, kType, T>;
  const auto modified = dim <= 64    ? launch_shape<Operands, 64, true, kType, T>
                        : dim <= 128 ? launch_shape<Operands, 128, true, kType, T>
                                     : launch_shape<Operands, 256, true, kType, T>;
  (has_terms(call) ? modified : plain)(call, stream);
}

// Bytes that a block may have, by the table of compute capabilities in the CUDA programming guide.
std::size_t shared_limit(int compute_capability) {
  if (compute_capability == 80 || compute_capability == 87) return 163 * 1024;
  return compute_capability / 10 == 9 || compute_capability / 10 == 10 ? 227 * 1024 : 99 * 1024;
}

template <class Operands>
std::size_t shared_bytes(int dim) {
  return dim <= 64    ? sizeof(MmaShared<MmaShape<Operands, 64, false>>)
         : dim <= 128 ? sizeof(MmaShared<MmaShape<Operands, 128, false>>)
                      : sizeof(MmaShared<MmaShape<Operands, 256, false>>);
}

}  // namespace

bool mma_can(const AttentionCall& call, int compute_capability) {
  const int dim = std::max(call.head_dim, call.v_head_dim);
  const std::size_t bytes =
      call.dtype == Dtype::float32 ? shared_bytes<OperandsTf32<3>>(dim) : shared_bytes<Operands16<Dtype::bfloat16>>(dim);
  return compute_capability >= 80 && can_scale(call) && dim <= 256 && bytes <= shared_limit(compute_capability);
}

void attention_mma(const AttentionCall& call, Stream stream) {
  if (call.k_scales) return attention_mma_int8(call, stream);
  if (call.dtype == Dtype::bfloat16) return launch_mma<Operands16<Dtype::bfloat16>, Dtype::bfloat16>(call, stream);
  if (call.dtype == Dtype::float16) return launch_mma<Operands16<Dtype::float16>, Dtype::float16>(call, stream);
  if (call.precision == Precision::medium) return launch_mma<OperandsTf32<1>, Dtype::float32>(call, stream);
  if (call.precision == Precision::high) return launch_mma<OperandsBfloatPairs, Dtype::float32>(call, stream);
  launch_mma<OperandsTf32<3>, Dtype::float32>(call, stream);
}

}  // namespace maskattn::cuda
