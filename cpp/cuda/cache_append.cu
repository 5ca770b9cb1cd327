#include "cuda/cache_append.hpp"

#include <algorithm>

#include "cuda/numbers.hpp"

namespace maskattn::cuda {

namespace {

// A block stores the numbers of one token and head.
template <class From, class To>
__global__ void append_tokens_of(AppendCall call) {
  const int i = static_cast<int>(blockIdx.x) % call.count, heads = static_cast<int>(blockIdx.x) / call.count;
  const int head = heads % call.heads, b = heads / call.heads;
  if (i >= call.appends[b]) return;
  const std::int64_t position = call.lengths[b] + i, column = position / call.page_size % call.pages_per_sequence;
  const std::int64_t page = call.table[static_cast<std::int64_t>(b) * call.pages_per_sequence + column];
  const From* from = static_cast<const From*>(call.from) + b * call.stride[0] + head * call.stride[1] + i * call.stride[2];
  To* to = static_cast<To*>(call.pool) + ((page * call.heads + head) * call.page_size + position % call.page_size) * call.dim;
  for (int d = static_cast<int>(threadIdx.x); d < call.dim; d += static_cast<int>(blockDim.x))
    to[d] = from_float<To>(to_float(from[d * call.stride[3]]));
}

}  // namespace

void append_tokens(const AppendCall& call, Stream stream) {
  const std::int64_t blocks = std::int64_t{call.batch} * call.heads * call.count;
  const int threads = std::clamp((call.dim + 31) / 32 * 32, 32, 256);
  with_type(call.from_dtype, [&](auto from) {
    with_type(call.dtype,
              [&](auto to) { launch(append_tokens_of<decltype(from), decltype(to)>, blocks, dim3(threads), 0, stream, call); });
  });
}

}  // namespace maskattn::cuda
