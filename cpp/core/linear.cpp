// A weight row is to a row of activations what a key is to a query: the product is made of the attention kernels' scores.
#include "maskattn/linear.hpp"

#include <algorithm>
#include <iterator>

#include "block.hpp"
#include "dispatch.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

constexpr double kSmall = 2e6;  // multiplications that are not worth waking a thread for
constexpr double kPacking = 8;  // what reading and transposing a weight costs, in multiplications

template <class T>
void tile(const Linear<T>& call, std::int64_t first_row, std::int64_t first_output) {
  const KernelTable<T>& kernels = kernel_table<T>();
  const int rows = static_cast<int>(std::min<std::int64_t>(kBlockRows, call.rows - first_row));
  const int outputs = static_cast<int>(std::min<std::int64_t>(kPanel, call.outputs - first_output));
  const int inputs = static_cast<int>(call.inputs);
  T* panel = static_cast<T*>(thread_memory(sizeof(T) * static_cast<std::size_t>(kPanel * call.inputs + kBlockRows * kSegment)));
  T* scores = panel + kPanel * call.inputs;
  const T* queries[kBlockRows];
  for (int r = 0; r < rows; ++r) queries[r] = call.x + (first_row + r) * call.x_stride;
  const void* pieces[kPanel / kPiece + kPiecesAhead];
  for (std::int64_t i = 0; i < std::ssize(pieces); ++i)
    pieces[i] = call.weight + (first_output + i * kPiece) * call.weight_stride;
  const PieceMemory weights{pieces, call.weight_stride, nullptr, 0};
  const MaskWord existing = ~MaskWord{0} >> (kPanel - outputs);
  if (const auto direct = kernels.direct_scores[static_cast<int>(kDtype<T>)]; direct && rows <= kRowGroup) {
    direct(queries, rows, weights, existing, inputs, panel, scores);
  } else {
    kernels.pack_keys[static_cast<int>(kDtype<T>)](weights, existing, inputs, panel);
    kernels.scores(queries, rows, panel, inputs, nullptr, scores);
  }
  for (int r = 0; r < rows; ++r) {
    const T* from = scores + r * kSegment;
    T* to = call.out + (first_row + r) * call.out_stride + first_output;
    if (call.bias)
      std::transform(from, from + outputs, call.bias + first_output, to, [](T product, T bias) { return product + bias; });
    else
      std::copy_n(from, outputs, to);
  }
}

}  // namespace

template <class T>
void linear(const Linear<T>& call) {
  const double work = (static_cast<double>(call.rows) + kPacking) * static_cast<double>(call.inputs * call.outputs);
  const std::int64_t panels = (call.outputs + kPanel - 1) / kPanel, blocks = (call.rows + kBlockRows - 1) / kBlockRows;
  parallel_for(panels * blocks, work < kSmall ? 1 : call.threads,
               [&](std::int64_t index) { tile(call, index % blocks * kBlockRows, index / blocks * kPanel); });
}

template void linear(const Linear<float>&);
template void linear(const Linear<double>&);

}  // namespace maskattn
