#include "maskattn/elementwise.hpp"

#include <algorithm>

#include "dispatch.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

constexpr std::int64_t kShare = 1 << 15;  // elements that are worth a thread

// row(index) for every row, in shares of whole rows.
template <class Row>
void for_rows(const RowsOf& call, const Row& row) {
  const std::int64_t each = std::max<std::int64_t>(1, kShare / std::max<std::int64_t>(1, call.width));
  parallel_for((call.rows + each - 1) / each, call.threads, [&](std::int64_t share) {
    for (std::int64_t r = share * each; r < std::min(call.rows, (share + 1) * each); ++r) row(r);
  });
}

NormArgs norm_of(const RowsOf& call, std::int64_t row, const float* weight, const float* bias, float eps) {
  return {call.x + row * call.x_stride, static_cast<int>(call.width), weight, bias, eps, call.out + row * call.out_stride};
}

}  // namespace

void layer_norm(const RowsOf& call, const float* weight, const float* bias, float eps) {
  const LinearTable& kernels = current_linears();
  for_rows(call, [&](std::int64_t row) { kernels.layer_norm(norm_of(call, row, weight, bias, eps)); });
}

void rms_norm(const RowsOf& call, const float* weight, float eps) {
  const LinearTable& kernels = current_linears();
  for_rows(call, [&](std::int64_t row) { kernels.rms_norm(norm_of(call, row, weight, nullptr, eps)); });
}

void activate(const RowsOf& call, Activation function, bool gated) {
  const LinearTable& kernels = current_linears();
  for_rows(call, [&](std::int64_t row) {
    const float* x = call.x + row * call.x_stride;
    FinishArgs args{};
    args.x = x;
    args.function = static_cast<int>(function);
    args.factor = gated ? x + call.width : nullptr;
    args.count = static_cast<int>(call.width);
    args.out = call.out + row * call.out_stride;
    kernels.finish(args);
  });
}

}  // namespace maskattn
