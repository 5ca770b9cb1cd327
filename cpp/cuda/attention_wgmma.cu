// Attention of many rows on sm_90a (arXiv:2407.08608). A block stays on its multiprocessor and takes piece after piece of work.
// One warp, the producer, has the copy engine bring tiles of keys and values into a ring of stages; two or three warpgroups, the
// consumers, do a strip each. A consumer's products of the next scores run while it makes weights of the last, and while others
// multiply.
#include <algorithm>
#include <array>

#include "cuda/runtime.hpp"
#include "cuda/wgmma_consumer.hpp"

namespace maskattn::cuda {
namespace {

template <Dtype kType, int kDim, bool kModified>
__global__ void __launch_bounds__(WgmmaShape<kDim, kModified>::kThreads, 1)
    wgmma_kernel(const __grid_constant__ WgmmaCall w, const __grid_constant__ TensorMap keys,
                 const __grid_constant__ TensorMap values) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = WgmmaShape<kDim, kModified>;
  auto& shared = *dynamic_shared<WgmmaShared<Shape>>();
  if (threadIdx.x == 0) {
    prefetch_map(keys);
    prefetch_map(values);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      barrier_init(&shared.keys_full[stage], 1);
      barrier_init(&shared.values_full[stage], 1);
      barrier_init(&shared.keys_empty[stage], 4 * Shape::kConsumers);  // a lane of each warp
      barrier_init(&shared.values_empty[stage], 4 * Shape::kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_up_registers<Shape::kProducerRegisters>();
    if (threadIdx.x < 32) produce(w, keys, values, shared);
  } else {
    take_registers<Shape::kConsumerRegisters>();
    WgmmaConsumer<Shape, kType, kDim, kModified>(w, shared, static_cast<int>(threadIdx.x) / 128 - 1).consume();
  }
#endif
}

// Sequences, heads and rows of keys and values: packed sequences are one.
std::array<int, 3> extents_of(const AttentionCall& call) {
  return {call.k.starts ? 1 : call.batch, call.kv_heads, call.k.starts ? call.kv_rows : call.kv_len};
}

TensorMap map_of(const AttentionCall& call, const Rows<const void>& rows, int columns) {
  const auto extent = [](int n) { return static_cast<std::uint64_t>(n); };
  const std::array<int, 3> outer = extents_of(call);
  TensorShape shape{rows.data, {extent(columns), extent(outer[2]), extent(outer[1]), extent(outer[0])}, {}};
  const std::ptrdiff_t strides[] = {rows.stride[2], rows.stride[1], rows.stride[0]};
  // Along an extent of 1 nothing is ever multiplied with the stride, but it must be one.
  for (int i = 0; i < 3; ++i) shape.stride[i] = shape.extent[i + 1] == 1 ? 16 : static_cast<std::uint64_t>(strides[i]) * 2;
  return tensor_map(shape);
}

template <Dtype kType, int kDim, bool kModified>
void launch_wgmma(const AttentionCall& call, Stream stream) {
  using Shape = WgmmaShape<kDim, kModified>;
  constexpr std::int64_t kCacheBytes = 24 << 20;
  const int heads = call.batch * call.kv_heads, strips = strips_per_kv_head(call);
  const int blocks = (strips + Shape::kConsumers - 1) / Shape::kConsumers;
  const std::int64_t head_bytes = 2 * static_cast<std::int64_t>(call.kv_len) * (call.head_dim + call.v_head_dim);
  const auto at_once =
      static_cast<int>(std::clamp<std::int64_t>(kCacheBytes / std::max<std::int64_t>(head_bytes, 1), 1, std::max(heads, 1)));
  const auto works = static_cast<int>(grid_of(std::int64_t{blocks} * heads).x);  // no more than may be blocks elsewhere
  const WgmmaCall w{call, score_terms(call), strips, blocks, works, at_once, rows_have_pairs<2>(call.out, call.v_head_dim)};
  const int grid = std::min(w.works, device().multiprocessors);
  launch(wgmma_kernel<kType, kDim, kModified>, grid, dim3(Shape::kThreads), sizeof(WgmmaShared<Shape>), stream, w,
         map_of(call, call.k, call.head_dim), map_of(call, call.v, call.v_head_dim));
}

template <Dtype kType>
void launch_wgmma(const AttentionCall& call, Stream stream) {
  const int dim = std::max(call.head_dim, call.v_head_dim);
  const bool modified = has_terms(call);
  const auto run = dim <= 64    ? (modified ? launch_wgmma<kType, 64, true> : launch_wgmma<kType, 64, false>)
                   : dim <= 128 ? (modified ? launch_wgmma<kType, 128, true> : launch_wgmma<kType, 128, false>)
                                : launch_wgmma<kType, 256, false>;
  run(call, stream);
}

// Whether sm_90a is among the architectures that this is built for; PTX of others has no wgmma.
#if defined(MASKATTN_SM90A) || defined(MASKATTN_EMULATE_CUDA)
constexpr bool kBuilt = true;
#else
constexpr bool kBuilt = false;
#endif

// Extents of 1 may have any stride.
bool engine_can_copy(const AttentionCall& call, const Rows<const void>& rows) {
  const std::array<int, 3> extent = extents_of(call);
  bool can = reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0;
  for (std::size_t i = 0; i < 3; ++i)
    can = can && (extent[i] == 1 || (rows.stride[i] > 0 && rows.stride[i] % 8 == 0 && rows.stride[i] < (std::int64_t{1} << 39)));
  return can;
}

}  // namespace

bool wgmma_can(const AttentionCall& call, int compute_capability) {
  const int dim = std::max(call.head_dim, call.v_head_dim);
  const bool pairs = reinterpret_cast<std::uintptr_t>(call.q.data) % 4 == 0 && call.head_dim % 2 == 0 &&
                     call.q.stride[0] % 2 == 0 && call.q.stride[1] % 2 == 0 && call.q.stride[2] % 2 == 0;
  return kBuilt && compute_capability == 90 && (call.dtype == Dtype::bfloat16 || call.dtype == Dtype::float16) &&
         call.kv_len > 0 && pairs && engine_can_copy(call, call.k) && engine_can_copy(call, call.v) && !call.page_table &&
         can_scale(call) && dim <= (has_terms(call) ? 128 : 256);  // registers hold no more beside such scores
}

void attention_wgmma(const AttentionCall& call, Stream stream) {
  if (call.dtype == Dtype::bfloat16) return launch_wgmma<Dtype::bfloat16>(call, stream);
  launch_wgmma<Dtype::float16>(call, stream);
}

}  // namespace maskattn::cuda
