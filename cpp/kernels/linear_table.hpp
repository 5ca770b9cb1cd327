// What the driver of packed products (core/packed_linear.cpp) may ask of an instruction set, and how weights are packed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

// Weights lie in blocks of 64 outputs, each block one piece of memory with the inputs outermost, so that a row of activations
// reads it once from front to back:
//   float32   [inputs][64] floats
//   bfloat16  [inputs / 2][64][2] bfloat16
//   int8      [inputs / 4][64][4] integers, then 64 factors (float) and 64 sums (int32)
//   int4      for each group of inputs with one scale [group / 8][64][4] bytes, the lower half of byte i of input i, the upper
//             half of input 4 + i; then 64 scales (float16); as uint4 then 64 zero points (float16)
// What stands for missing inputs and outputs is not looked at: activations are zeros there, results are left out.
inline constexpr int kBlockOutputs = 64;
// Inputs that lie together, by type of weight, in the order of WeightType (maskattn/packed_linear.hpp).
inline constexpr int kWeightTypes = 5;
inline constexpr int kInputGroup[kWeightTypes] = {1, 2, 4, 8, 8};
// Inputs of a chain of float products.
inline constexpr int kChainInputs = 32;
// Groups with one scale are multiples of so many inputs.
inline constexpr int kScaleGroup = 32;

// Behind the integers of a block: weight = integer * scale.
struct BlockScales {
  float scale[kBlockOutputs];
  std::int32_t sum[kBlockOutputs];  // of the integers of an output
};

// A row of activations for 8-bit weights: x = (q - 256 zero) * scale with q of 16 bits, all high bytes of q and then all low
// ones, four to a word. Two exact sums of products of bytes make one of 16-bit activations; one is enough where 8 bits are.
struct QuantizedRow {
  float scale;
  std::int32_t zero;
  std::int32_t bits;  // 8: all low bytes are zeros; or 16
  float unused[13];
  std::uint32_t bytes[1];  // [2][inputs / 4]

  static constexpr std::size_t size(std::int64_t inputs) { return 64 + 2 * static_cast<std::size_t>(inputs); }
};
// 8 bits are enough for a row if their rounding errors stay below this part of it, both as root mean squares: about what rounding
// to 8 bits makes of the weights.
inline constexpr float kSmallError = 0.0125f;

// A row of activations for 4-bit weights: the same without a zero, of q with a sign; behind the bytes the sums of the
// first 0, kScaleGroup, 2 kScaleGroup... q, modulo 2^32.
struct SignedRow {
  float scale;
  std::int32_t bits;
  float unused[14];
  std::uint32_t bytes[1];  // [2][inputs / 4]

  std::uint32_t* sums(int inputs) { return bytes + inputs / 2; }
  // Of q of the `group` inputs from `begin` on.
  std::int32_t sum(int inputs, int begin, int group) const {
    const std::uint32_t* sums = bytes + inputs / 2;
    return static_cast<std::int32_t>(sums[(begin + group) / kScaleGroup] - sums[begin / kScaleGroup]);
  }
  static constexpr std::size_t size(std::int64_t inputs) {
    return QuantizedRow::size(inputs) + 4 * static_cast<std::size_t>(inputs / kScaleGroup + 1);
  }
};

struct LinearArgs {
  const void* block;
  int inputs;  // in whole groups
  int group;   // of inputs with one scale, for 4-bit weights
  // [rows] as `convert` makes them, equally far apart; where there is none, of floats with as many readable elements.
  const void* const* x;
  int rows;
  float* out;                                              // [rows][kBlockOutputs]
  static constexpr std::ptrdiff_t stride = kBlockOutputs;  // known to the compiler: tiles end without computing addresses
};

// In the order of Activation (maskattn/elementwise.hpp).
inline constexpr int kActivations = 6;

// What a layer does between products, row by row.
struct NormArgs {
  const float* x;
  int width;
  const float* weight;
  const float* bias;  // or null
  float eps;
  float* out;
};

// out = function(x + bias) * (factor + factor_bias), or that added to out. Without a function there is no factor.
struct FinishArgs {
  const float* x;
  const float* bias;    // or null
  int function;         // or -1
  const float* factor;  // or null
  const float* factor_bias;
  bool added;
  bool rounded;  // out gets bfloat16 numbers: where there is a `convert` to them, and nothing is added
  int count;
  void* out;
};

// The largest of kBlockOutputs numbers, and the sum of 2^(x log2(e) - exponent) of them, for an integer near the largest
// exponent.
struct BlockSummary {
  float maximum, exponent, sum;
};

struct LinearTable {
  // The canonical sum of float products is one FMA chain per 32 inputs, each from zero, chains added in order, as of scores;
  // where bfloat16 numbers are multiplied as such, one of sums of pairs per 256 inputs. Integer products are exact.
  void (*multiply[kWeightTypes])(const LinearArgs& args);
  // Writes a row of `inputs` floats as the products of a type take it, QuantizedRow::size or SignedRow::size bytes at most, zeros
  // up to `padded` inputs; null where they take floats.
  void (*convert[kWeightTypes])(const float* x, int inputs, int padded, void* to);
  void (*layer_norm)(const NormArgs& args);
  void (*rms_norm)(const NormArgs& args);
  void (*finish)(const FinishArgs& args);
  // Without sum and exponent, unless they are asked for.
  BlockSummary (*summarize)(const float* x, bool with_sum);
};

}  // namespace maskattn
