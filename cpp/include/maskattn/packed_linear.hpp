// Weight matrices packed once for many products, in float32, bfloat16, or integers of 8 or 4 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "maskattn/elementwise.hpp"

namespace maskattn {

inline constexpr std::size_t kPackedAlign = 64;  // of a weight's memory
inline constexpr std::int64_t kDefaultGroup = 32;

// int4: (q - 8) * scale, uint4: (q - zero) * scale, for q from 0 to 15, scale and zero of each group of inputs.
enum class WeightType : int { float32, bfloat16, int8, int4, uint4 };

inline bool is_four_bit(WeightType type) { return type >= WeightType::int4; }

// An (outputs, inputs) matrix, packed, or some of its rows. Filled row by row, then read only, by any number of threads. Copies
// and slices share the memory.
class PackedWeight {
 public:
  // `group`: inputs that share a scale, a multiple of 32; of 4-bit weights.
  PackedWeight(WeightType type, std::int64_t outputs, std::int64_t inputs, std::int64_t group);
  // Over memory that has been filled already, of `whole_bytes()`, aligned as kPackedAlign says; it is never written.
  PackedWeight(WeightType type, std::int64_t outputs, std::int64_t inputs, std::int64_t group,
               std::shared_ptr<const std::byte> data);

  // Rows first to first + count, of `inputs` floats each, `stride` elements apart; as int8 each row has a factor of its own.
  void fill(std::int64_t first, std::int64_t count, const float* rows, std::ptrdiff_t stride, int threads);
  // The same of 4-bit weights that are there already: q (count, inputs), scales and zeros (count, groups()), rounded to float16.
  // zeros are of uint4 weights, or null.
  void fill_groups(std::int64_t first, std::int64_t count, const std::uint8_t* q, const float* scales, const float* zeros);
  // A row as its packed form has it.
  void row(std::int64_t output, float* to) const;

  PackedWeight slice(std::int64_t start, std::int64_t stop) const;
  // A weight of `count` of the rows, copied as they are packed.
  PackedWeight take(const std::int64_t* outputs, std::int64_t count) const;
  // Whether `next` is the rows behind these, in the same memory.
  bool followed_by(const PackedWeight& next) const { return next.data_ == data_ && next.first_ == first_ + outputs_; }

  WeightType type() const { return type_; }
  std::int64_t outputs() const { return outputs_; }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t padded_inputs() const { return padded_; }  // whole groups; inputs that are not there meet zeros
  std::int64_t group() const { return group_; }           // inputs with one scale, or 0: all of an output's, or none needed
  std::size_t bytes() const;                              // of the blocks in which its rows lie
  // All memory of the weight that this one is, or is a part of; whether this is the whole.
  const std::byte* data() const { return data_.get(); }
  bool writable() const { return writable_ != nullptr; }
  bool whole() const { return first_ == 0 && outputs_ == all_outputs_; }
  std::size_t whole_bytes() const { return whole_bytes_; }

  // Its rows are `first_output()` and following ones of those in its memory.
  std::int64_t first_output() const { return first_; }
  const std::byte* block(std::int64_t index) const { return data_.get() + static_cast<std::size_t>(index) * block_bytes_; }

 private:
  WeightType type_;
  std::int64_t outputs_, inputs_, padded_, group_, first_ = 0, all_outputs_;
  std::size_t block_bytes_, whole_bytes_;
  std::shared_ptr<const std::byte> data_;
  std::byte* writable_ = nullptr;
};

// What is done with a sum before it is written.
struct Finish {
  std::optional<Activation> activation{};  // of the sum
  bool gated = false;                      // with an activation: times what the second half of the outputs is; see can_gate()
  bool added = false;                      // to what `out` holds
  bool rounded = false;                    // to bfloat16, which is what `out` holds; not with `added`
};

// Whether its products round rows to bfloat16, and so take rows that are rounded, and write such.
bool rounds_rows(const PackedWeight& weight);

// out[r][o] = x[r] . weight[o] + bias[o], and what `finish` says is done with it before it is written; rows of x and out are
// `..._stride` elements apart, bias may be null. Activations are float32, or bfloat16 if they are `rounded`; with integer weights
// each row is rounded to 8 or 16 bits of its own scale first, and with bfloat16 weights to bfloat16 where the instruction set
// multiplies such. The bits of a row of out depend on that row of x only.
struct PackedLinear {
  const PackedWeight* weight;
  std::int64_t rows;
  const void* x;
  std::ptrdiff_t x_stride;
  const float* bias;
  void* out;
  std::ptrdiff_t out_stride;
  int threads;
  Finish finish{};
  bool rounded = false;  // x; where rounds_rows()

  const char* x_row(std::int64_t row) const { return static_cast<const char*>(x) + row * x_stride * (rounded ? 2 : 4); }
  char* out_row(std::int64_t row) const { return static_cast<char*>(out) + row * out_stride * (finish.rounded ? 2 : 4); }
};
void linear(const PackedLinear& call);
// Whether a gate and what it is multiplied with, the halves of a weight's outputs, can be finished together.
bool can_gate(const PackedWeight& weight);

// The `count` largest numbers of each row of `out` as linear() would write it, largest first, the earlier output first among
// equals, and the logarithm of the sum of all their exponentials (NaN where an output is NaN or +inf), without writing it:
// call.out and call.finish are not looked at. NaN is never among them; -inf and output 0 stand for what is missing then.
struct BestOutputs {
  std::int64_t count;
  float* values;          // [rows][count]
  std::int64_t* outputs;  // [rows][count]
  float* logsumexp;       // [rows], or null
};
void linear_best(const PackedLinear& call, const BestOutputs& best);

}  // namespace maskattn
