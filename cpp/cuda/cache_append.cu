#include "cuda/cache_append.hpp"

#include <algorithm>

#include "cuda/numbers.hpp"
#include "cuda/softmax.hpp"

namespace maskattn::cuda {

namespace {

// The token and head of a block: where its numbers come from, and the row of a pool that they go to.
struct AppendRow {
  std::int64_t from, to;
};
__device__ bool row_of_block(const AppendCall& call, AppendRow& row) {
  const int i = static_cast<int>(blockIdx.x) % call.count, heads = static_cast<int>(blockIdx.x) / call.count;
  const int head = heads % call.heads, b = heads / call.heads;
  if (i >= call.appends[b]) return false;
  const std::int64_t position = call.lengths[b] + i, column = position / call.page_size % call.pages_per_sequence;
  const std::int64_t page = call.table[static_cast<std::int64_t>(b) * call.pages_per_sequence + column];
  row.from = b * call.stride[0] + head * call.stride[1] + i * call.stride[2];
  row.to = (page * call.heads + head) * call.page_size + position % call.page_size;
  return true;
}

template <class From, class To>
__global__ void append_tokens_of(AppendCall call) {
  AppendRow row;
  if (!row_of_block(call, row)) return;
  const From* from = static_cast<const From*>(call.from) + row.from;
  To* to = static_cast<To*>(call.pool) + row.to * call.dim;
  for (int d = static_cast<int>(threadIdx.x); d < call.dim; d += static_cast<int>(blockDim.x))
    to[d] = from_float<To>(to_float(from[d * call.stride[3]]));
}

// By one warp; the arithmetic of cache/int8.py, to the bit.
template <class From>
__global__ void append_bytes_of(AppendCall call) {
  constexpr float tiny = 0x1p-126f, infinity = __builtin_inff();  // a subnormal scale has too few bits
  AppendRow row;
  if (!row_of_block(call, row)) return;
  const int lane = static_cast<int>(threadIdx.x);
  const From* from = static_cast<const From*>(call.from) + row.from;
  float largest = 0;
  bool finite = true;
  for (int d = lane; d < call.dim; d += 32) {
    const float size = fabsf(to_float(from[d * call.stride[3]]));
    largest = fmaxf(largest, size);
    finite = finite && size < infinity;
  }
  largest = warp_maximum(largest);
  finite = __all_sync(0xffffffffu, finite);
  const float scale = largest == 0 ? 0.f : fmaxf(__fdiv_rn(largest, 127.f), tiny), divisor = largest == 0 ? 1.f : scale;
  auto* const to = static_cast<std::int8_t*>(call.pool) + row.to * call.dim;
  for (int d = lane; d < call.dim; d += 32)
    to[d] = finite ? static_cast<std::int8_t>(rintf(__fdiv_rn(to_float(from[d * call.stride[3]]), divisor))) : std::int8_t{0};
  if (lane == 0) call.scales[row.to] = finite ? scale : __int_as_float(0x7fc00000);
}

}  // namespace

void append_tokens(const AppendCall& call, Stream stream) {
  const std::int64_t blocks = std::int64_t{call.batch} * call.heads * call.count;
  const int threads = std::clamp((call.dim + 31) / 32 * 32, 32, 256);
  with_type(call.from_dtype, [&](auto from) {
    if (call.scales) return launch(append_bytes_of<decltype(from)>, blocks, dim3(32), 0, stream, call);
    with_type(call.dtype,
              [&](auto to) { launch(append_tokens_of<decltype(from), decltype(to)>, blocks, dim3(threads), 0, stream, call); });
  });
}

}  // namespace maskattn::cuda
