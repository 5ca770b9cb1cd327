#include "maskattn/packed_linear.hpp"

#include <algorithm>

#include "dispatch.hpp"
#include "memory.hpp"
#include "threads.hpp"

namespace maskattn {
namespace {

constexpr double kSmall = 4e5;  // weights that are not worth waking a thread for

// The rows of a call as kernels take them: where they are, or converted, or copies with zeros behind them.
class Rows {
 public:
  Rows(const PackedLinear& call, const LinearTable& kernels)
      : call_(call),
        convert_(kernels.convert[static_cast<int>(call.weight->type())]),
        inputs_(static_cast<int>(call.weight->padded_inputs())),
        copied_(convert_ || call.weight->inputs() != inputs_) {
    const std::size_t row_bytes = is_four_bit(call.weight->type()) ? SignedRow::size(inputs_)
                                  : convert_                       ? QuantizedRow::size((inputs_ + 3) / 4)
                                                                   : sizeof(float) * static_cast<std::size_t>(inputs_);
    size_ = (row_bytes + kAlign - 1) / kAlign * kAlign;
    if (copied_) copies_ = static_cast<std::byte*>(thread_memory(size_ * static_cast<std::size_t>(call.rows)));
  }
  bool copied() const { return copied_; }
  void copy(std::int64_t row) {
    const float* from = call_.x + row * call_.x_stride;
    std::byte* to = copies_ + static_cast<std::size_t>(row) * size_;
    const auto inputs = static_cast<int>(call_.weight->inputs());
    if (convert_) {
      convert_(from, inputs, inputs_, to);
    } else {
      std::copy_n(from, inputs, reinterpret_cast<float*>(to));
      std::fill(reinterpret_cast<float*>(to) + inputs, reinterpret_cast<float*>(to) + inputs_, 0.f);
    }
  }
  const void* operator[](std::int64_t row) const {
    if (copied_) return copies_ + static_cast<std::size_t>(row) * size_;
    return call_.x + row * call_.x_stride;
  }

 private:
  const PackedLinear& call_;
  void (*convert_)(const float*, int, int, void*);
  int inputs_;
  bool copied_;
  std::size_t size_;
  std::byte* copies_ = nullptr;
};

void multiply(const PackedLinear& call, const LinearTable& kernels, const Rows& rows, std::int64_t first_row,
              std::int64_t block) {
  constexpr int most = kBlockRows;
  alignas(kAlign) float tile[most * kBlockOutputs];
  const void* x[most];
  const int count = static_cast<int>(std::min<std::int64_t>(most, call.rows - first_row));
  for (int r = 0; r < count; ++r) x[r] = rows[first_row + r];
  const auto inputs = static_cast<int>(call.weight->padded_inputs()), group = static_cast<int>(call.weight->group());
  const LinearArgs args{call.weight->block(block), inputs, group, x, count, tile, kBlockOutputs};
  kernels.multiply[static_cast<int>(call.weight->type())](args);
  // The block may begin before the rows that are asked for, and end behind them.
  const std::int64_t origin = block * kBlockOutputs - call.weight->first_output();
  const std::int64_t begin = std::max<std::int64_t>(origin, 0), end = std::min(origin + kBlockOutputs, call.weight->outputs());
  for (int r = 0; r < count; ++r) {
    const float* from = tile + r * kBlockOutputs - origin;
    float* to = call.out + (first_row + r) * call.out_stride;
    if (call.bias)
      for (std::int64_t o = begin; o < end; ++o) to[o] = from[o] + call.bias[o];
    else
      std::copy(from + begin, from + end, to + begin);
  }
}

}  // namespace

void linear(const PackedLinear& call) {
  if (call.rows == 0) return;
  const PackedWeight& weight = *call.weight;
  const LinearTable& kernels = current_linears();
  const std::int64_t first_block = weight.first_output() / kBlockOutputs;
  const std::int64_t blocks = (weight.first_output() + weight.outputs() + kBlockOutputs - 1) / kBlockOutputs - first_block;
  const bool small = static_cast<double>(call.rows) * static_cast<double>(weight.inputs() * weight.outputs()) < kSmall;
  const int threads = small ? 1 : call.threads;
  Rows rows(call, kernels);
  if (rows.copied()) {
    const std::int64_t part = (call.rows + threads - 1) / threads;
    parallel_for(threads, call.rows < 16 ? 1 : threads, [&](std::int64_t t) {
      for (std::int64_t r = t * part; r < std::min(call.rows, (t + 1) * part); ++r) rows.copy(r);
    });
  }
  // Few rows: every thread walks through one piece of memory. Many: whoever is free takes the next block, rows innermost.
  const std::int64_t row_blocks = (call.rows + kBlockRows - 1) / kBlockRows;
  const std::int64_t tasks = row_blocks == 1 && call.rows <= kFewRows ? threads : blocks * row_blocks;
  parallel_for(tasks, threads, [&](std::int64_t task) {
    if (tasks == threads && call.rows <= kFewRows) {
      for (std::int64_t b = blocks * task / tasks; b < blocks * (task + 1) / tasks; ++b)
        multiply(call, kernels, rows, 0, first_block + b);
    } else {
      multiply(call, kernels, rows, task % row_blocks * kBlockRows, first_block + task / row_blocks);
    }
  });
}

}  // namespace maskattn
