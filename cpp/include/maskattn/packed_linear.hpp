// Weight matrices packed once for many products, in float32, bfloat16 or 8-bit integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace maskattn {

enum class WeightType : int { float32, bfloat16, int8 };

// An (outputs, inputs) matrix, packed, or some of its rows. Filled row by row, then read only, by any number of threads. Copies
// and slices share the memory.
class PackedWeight {
 public:
  PackedWeight(WeightType type, std::int64_t outputs, std::int64_t inputs);

  // Rows first to first + count, of `inputs` floats each, `stride` elements apart; as int8 each row has a factor of its own.
  void fill(std::int64_t first, std::int64_t count, const float* rows, std::ptrdiff_t stride, int threads);
  // A row as its packed form has it.
  void row(std::int64_t output, float* to) const;

  PackedWeight slice(std::int64_t start, std::int64_t stop) const;
  // Whether `next` is the rows behind these, in the same memory.
  bool followed_by(const PackedWeight& next) const { return next.data_ == data_ && next.first_ == first_ + outputs_; }

  WeightType type() const { return type_; }
  std::int64_t outputs() const { return outputs_; }
  std::int64_t inputs() const { return inputs_; }
  std::size_t bytes() const;  // of the blocks in which its rows lie

  // Its rows are `first_output()` and following ones of those in its memory.
  std::int64_t first_output() const { return first_; }
  const std::byte* block(std::int64_t index) const { return data_.get() + static_cast<std::size_t>(index) * block_bytes_; }

 private:
  WeightType type_;
  std::int64_t outputs_, inputs_, groups_, first_ = 0;
  std::size_t block_bytes_;
  std::shared_ptr<std::byte> data_;
};

// out[r][o] = x[r] . weight[o] + bias[o]; rows of x and out are `..._stride` elements apart, bias may be null. Activations are
// float32; with integer weights each row is rounded to 16 bits of its own scale first, and with bfloat16 weights to bfloat16
// where the instruction set multiplies such. The bits of a row of out depend on that row of x only.
struct PackedLinear {
  const PackedWeight* weight;
  std::int64_t rows;
  const float* x;
  std::ptrdiff_t x_stride;
  const float* bias;
  float* out;
  std::ptrdiff_t out_stride;
  int threads;
};
void linear(const PackedLinear& call);

}  // namespace maskattn
