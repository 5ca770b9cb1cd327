#include "cuda/merge.hpp"

#include "cuda/numbers.hpp"
#include "cuda/softmax.hpp"

namespace maskattn::cuda {

namespace {

constexpr int kWarps = 4;

// Where a row is in each array: together, as 64-bit divisions are what a row costs beside its memory.
struct RowPlaces {
  std::int64_t out_a = 0, lse_a = 0, out_b = 0, lse_b = 0;
};
__device__ RowPlaces places_of(const MergeCall& call, std::int64_t row) {
  RowPlaces at;
  for (int axis = call.axes - 2; axis >= 0; --axis) {
    const std::int64_t extent = call.extent[axis], i = row % extent;
    row /= extent;
    at.out_a += i * call.a.out_stride[axis];
    at.lse_a += i * call.a.lse_stride[axis];
    at.out_b += i * call.b.out_stride[axis];
    at.lse_b += i * call.b.lse_stride[axis];
  }
  return at;
}

// e^lse of both parts, relative to the larger, as shares of their sum; and its logarithm.
struct Shares {
  float a, b, lse;
};
__device__ Shares shares_of(float a, float b) {
  const float top = a > b || a != a ? a : b;  // NaN is not passed over
  const float reference = top == kMinusInfinity ? 0.f : top;
  const float share_a = expf(a - reference), share_b = expf(b - reference), total = share_a + share_b;
  const float divisor = total == 0 ? 1.f : total;
  return {share_a / divisor, share_b / divisor, reference + logf(total)};
}

// A part of no weight is left out, not multiplied by zero: what stands there does not matter.
__device__ float part(const AttentionState& state, std::int64_t at, float share) {
  return share > 0 ? read_float(state.out, state.out_dtype, at) * share : 0 * share;
}

// A warp for each row.
__global__ void __launch_bounds__(32 * kWarps) merge_kernel(MergeCall call, std::int64_t rows) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32, dim = call.extent[call.axes - 1];
  if (row >= rows) return;
  const AttentionState &a = call.a, &b = call.b;
  const RowPlaces at = places_of(call, row);
  const Shares shares = shares_of(read_float(a.lse, a.lse_dtype, at.lse_a), read_float(b.lse, b.lse_dtype, at.lse_b));
  const int lane = static_cast<int>(threadIdx.x) % 32, last = call.axes - 1;
  for (std::int64_t d = lane; d < dim; d += 32) {
    const float sum = part(a, at.out_a + d * a.out_stride[last], shares.a) + part(b, at.out_b + d * b.out_stride[last], shares.b);
    write_float(call.out, a.out_dtype, row * dim + d, sum);
  }
  if (lane == 0) write_float(call.lse, a.lse_dtype, row, shares.lse);
}

}  // namespace

void merge_states(const MergeCall& call, Stream stream) {
  std::int64_t rows = 1;
  for (int axis = 0; axis + 1 < call.axes; ++axis) rows *= call.extent[axis];
  launch(merge_kernel, (rows + kWarps - 1) / kWarps, dim3(32 * kWarps), 0, stream, call, rows);
}

}  // namespace maskattn::cuda
