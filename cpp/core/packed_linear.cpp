#include "maskattn/packed_linear.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "dispatch.hpp"
#include "memory.hpp"
#include "threads.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace maskattn {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr double kSmall = 4e5;  // weights that are not worth waking a thread for

int group_of(WeightType type) { return kInputGroup[static_cast<int>(type)]; }

std::size_t element_bytes(WeightType type) { return 4 / static_cast<std::size_t>(group_of(type)); }

std::uint16_t to_bfloat(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bfloat(std::uint16_t x) {
  const std::uint32_t bits = std::uint32_t{x} << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// Where input i of output o of a block stands, in elements.
std::size_t place(int group, std::int64_t i, std::int64_t o) {
  return static_cast<std::size_t>((i / group * kBlockOutputs + o) * group + i % group);
}

// Nearest, of two the even one; for |x| below 2^22.
int rounded(float x) {
  constexpr float kInteger = 0x1.8p23f;  // a sum with it has no room for a fraction
  return static_cast<int>((x + kInteger) - kInteger);
}

// Some outputs of a block, from rows of floats.
struct Outputs {
  std::int64_t begin, end;  // of the block's
  const float* rows;        // of `begin` and those after it
  std::ptrdiff_t stride;

  const float* of(std::int64_t output) const { return rows + (output - begin) * stride; }
};

// put(place, input, output) for all, few inputs of all outputs at a time: both sides stay in the first-level cache.
template <class Put>
void in_tiles(int group, std::int64_t inputs, const Outputs& outputs, const Put& put) {
  constexpr std::int64_t kTile = 16;
  for (std::int64_t tile = 0; tile < inputs; tile += kTile)
    for (std::int64_t o = outputs.begin; o < outputs.end; ++o)
      for (std::int64_t i = tile; i < std::min(inputs, tile + kTile); ++i) put(place(group, i, o), i, o);
}

void fill_integers(std::byte* block, std::int64_t groups, std::int64_t inputs, const Outputs& outputs) {
  auto* scales = reinterpret_cast<BlockScales*>(block + groups * 4 * kBlockOutputs);
  float factors[kBlockOutputs];
  for (std::int64_t o = outputs.begin; o < outputs.end; ++o) {
    float most = 0;
    for (std::int64_t i = 0; i < inputs; ++i) most = std::max(most, std::abs(outputs.of(o)[i]));
    factors[o] = most > 0 ? 127 / most : 0;
    scales->scale[o] = most / 127;
    scales->sum[o] = 0;
  }
  in_tiles(4, inputs, outputs, [&](std::size_t at, std::int64_t i, std::int64_t o) {
    const int q = rounded(outputs.of(o)[i] * factors[o]);
    scales->sum[o] += q;
    reinterpret_cast<std::int8_t*>(block)[at] = static_cast<std::int8_t>(q);
  });
}

void fill_block(WeightType type, std::byte* block, std::int64_t groups, std::int64_t inputs, const Outputs& outputs) {
  switch (type) {
    case WeightType::float32:
      in_tiles(1, inputs, outputs,
               [&](std::size_t at, std::int64_t i, std::int64_t o) { reinterpret_cast<float*>(block)[at] = outputs.of(o)[i]; });
      break;
    case WeightType::bfloat16:
      in_tiles(2, inputs, outputs, [&](std::size_t at, std::int64_t i, std::int64_t o) {
        reinterpret_cast<std::uint16_t*>(block)[at] = to_bfloat(outputs.of(o)[i]);
      });
      break;
    case WeightType::int8: fill_integers(block, groups, inputs, outputs); break;
  }
}

// The rows of a call as kernels take them: where they are, or converted, or copies with zeros behind them.
class Rows {
 public:
  Rows(const PackedLinear& call, const LinearTable& kernels, int inputs)
      : call_(call),
        convert_(kernels.convert[static_cast<int>(call.weight->type())]),
        inputs_(inputs),
        copied_(convert_ || call.weight->inputs() != inputs) {
    const std::size_t row_bytes =
        convert_ ? QuantizedRow::size((inputs + 3) / 4) : sizeof(float) * static_cast<std::size_t>(inputs);
    size_ = (row_bytes + kAlign - 1) / kAlign * kAlign;
    if (copied_) copies_ = static_cast<std::byte*>(thread_memory(size_ * static_cast<std::size_t>(call.rows)));
  }
  bool copied() const { return copied_; }
  void copy(std::int64_t row) {
    const float* from = call_.x + row * call_.x_stride;
    std::byte* to = copies_ + static_cast<std::size_t>(row) * size_;
    const auto inputs = static_cast<int>(call_.weight->inputs());
    if (convert_) {
      convert_(from, inputs, to);
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
  void (*convert_)(const float*, int, void*);
  int inputs_;
  bool copied_;
  std::size_t size_;
  std::byte* copies_ = nullptr;
};

void multiply(const PackedLinear& call, const LinearTable& kernels, const Rows& rows, int inputs, std::int64_t first_row,
              std::int64_t block) {
  constexpr int most = kBlockRows;
  alignas(kAlign) float tile[most * kBlockOutputs];
  const void* x[most];
  const int count = static_cast<int>(std::min<std::int64_t>(most, call.rows - first_row));
  for (int r = 0; r < count; ++r) x[r] = rows[first_row + r];
  const LinearArgs args{call.weight->block(block), inputs, x, count, tile, kBlockOutputs};
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

std::int64_t blocks_up_to(std::int64_t output) { return (output + kBlockOutputs - 1) / kBlockOutputs; }

}  // namespace

PackedWeight::PackedWeight(WeightType type, std::int64_t outputs, std::int64_t inputs)
    : type_(type), outputs_(outputs), inputs_(inputs), groups_((inputs + group_of(type) - 1) / group_of(type)) {
  const auto elements = static_cast<std::size_t>(groups_ * group_of(type) * kBlockOutputs);
  block_bytes_ = elements * element_bytes(type) + (type == WeightType::int8 ? sizeof(BlockScales) : 0);
  const std::align_val_t align{bytes() < kHugePage ? kAlign : kHugePage};
  data_.reset(static_cast<std::byte*>(::operator new(bytes(), align)), [align](std::byte* p) { ::operator delete(p, align); });
#ifdef MADV_HUGEPAGE
  // A step reads weights from front to back: at the end of a small page the hardware's prefetching would stop.
  if (bytes() >= kHugePage) madvise(data_.get(), bytes(), MADV_HUGEPAGE);
#endif
  std::memset(data_.get(), 0, bytes());
}

std::size_t PackedWeight::bytes() const {
  return static_cast<std::size_t>(blocks_up_to(first_ + outputs_) - first_ / kBlockOutputs) * block_bytes_;
}

PackedWeight PackedWeight::slice(std::int64_t start, std::int64_t stop) const {
  PackedWeight part = *this;
  part.first_ += start;
  part.outputs_ = stop - start;
  return part;
}

void PackedWeight::fill(std::int64_t first, std::int64_t count, const float* rows, std::ptrdiff_t stride, int threads) {
  const std::int64_t start = first_ + first, end = start + count, first_block = start / kBlockOutputs;
  parallel_for(blocks_up_to(end) - first_block, threads, [&](std::int64_t index) {
    const std::int64_t block = first_block + index, origin = block * kBlockOutputs;
    const std::int64_t from = std::max(origin, start), to = std::min(origin + kBlockOutputs, end);
    const Outputs outputs{from - origin, to - origin, rows + (from - start) * stride, stride};
    fill_block(type_, data_.get() + static_cast<std::size_t>(block) * block_bytes_, groups_, inputs_, outputs);
  });
}

void PackedWeight::row(std::int64_t output, float* to) const {
  const std::byte* from = block((first_ + output) / kBlockOutputs);
  const std::int64_t o = (first_ + output) % kBlockOutputs;
  switch (type_) {
    case WeightType::float32:
      for (std::int64_t i = 0; i < inputs_; ++i) to[i] = reinterpret_cast<const float*>(from)[place(1, i, o)];
      break;
    case WeightType::bfloat16:
      for (std::int64_t i = 0; i < inputs_; ++i)
        to[i] = from_bfloat(reinterpret_cast<const std::uint16_t*>(from)[place(2, i, o)]);
      break;
    case WeightType::int8: {
      const float scale = reinterpret_cast<const BlockScales*>(from + groups_ * 4 * kBlockOutputs)->scale[o];
      for (std::int64_t i = 0; i < inputs_; ++i) to[i] = scale * reinterpret_cast<const std::int8_t*>(from)[place(4, i, o)];
      break;
    }
  }
}

void linear(const PackedLinear& call) {
  if (call.rows == 0) return;
  const PackedWeight& weight = *call.weight;
  const LinearTable& kernels = current_linears();
  const int group = group_of(weight.type()), inputs = static_cast<int>((weight.inputs() + group - 1) / group * group);
  const std::int64_t first_block = weight.first_output() / kBlockOutputs;
  const std::int64_t blocks = blocks_up_to(weight.first_output() + weight.outputs()) - first_block;
  const bool small = static_cast<double>(call.rows) * static_cast<double>(weight.inputs() * weight.outputs()) < kSmall;
  const int threads = small ? 1 : call.threads;
  Rows rows(call, kernels, inputs);
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
        multiply(call, kernels, rows, inputs, 0, first_block + b);
    } else {
      multiply(call, kernels, rows, inputs, task % row_blocks * kBlockRows, first_block + task / row_blocks);
    }
  });
}

}  // namespace maskattn
