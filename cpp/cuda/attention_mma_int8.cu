// Attention of many rows over pages of int8, which become the numbers of the queries' dtype on their way into shared memory.
// float32 is multiplied as at "highest", whatever is permitted; one shape of a block does calls with and without terms.
#include "cuda/mma_kernel.hpp"

namespace maskattn::cuda {
namespace {

template <class Operands, Dtype kType>
void launch_int8(const AttentionCall& call, Stream stream) {
  const int dim = std::max(call.head_dim, call.v_head_dim);
  const auto run = dim <= 64    ? launch_shape<Operands, 64, true, kType, std::int8_t>
                   : dim <= 128 ? launch_shape<Operands, 128, true, kType, std::int8_t>
                                : launch_shape<Operands, 256, true, kType, std::int8_t>;
  run(call, stream);
}

}  // namespace

void attention_mma_int8(const AttentionCall& call, Stream stream) {
  if (call.dtype == Dtype::bfloat16) return launch_int8<Operands16<Dtype::bfloat16>, Dtype::bfloat16>(call, stream);
  if (call.dtype == Dtype::float16) return launch_int8<Operands16<Dtype::float16>, Dtype::float16>(call, stream);
  launch_int8<OperandsTf32<3>, Dtype::float32>(call, stream);
}

}  // namespace maskattn::cuda
