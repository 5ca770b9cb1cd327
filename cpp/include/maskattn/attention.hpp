// Masked attention over strided arrays in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

class MaskPlan;

enum class Dtype : std::uint8_t { float32, float64, float16, bfloat16, int8 };
inline constexpr std::size_t size_of(Dtype dtype) {
  constexpr std::size_t sizes[] = {4, 8, 2, 2, 1};
  return sizes[static_cast<int>(dtype)];
}

// Element (b, h, row, c) is number b * stride[0] + h * stride[1] + row * stride[2] + c from data. Packed sequences have `starts`
// instead of a stride[0]: sequence b begins at row starts[b]. Data is `const void` or `void`.
template <class Data>
struct Rows {
  Data* data = nullptr;
  Dtype dtype = Dtype::float32;
  std::ptrdiff_t stride[3] = {};
  const std::int64_t* starts = nullptr;

  Data* at(std::int64_t b, std::int64_t h, std::int64_t row) const {
    const std::ptrdiff_t element = b * stride[0] + h * stride[1] + (row + (starts ? starts[b] : 0)) * stride[2];
    return offset(element);
  }
  Data* offset(std::ptrdiff_t element) const {
    using Bytes = decltype(bytes(data));
    return static_cast<Bytes>(data) + element * static_cast<std::ptrdiff_t>(size_of(dtype));
  }

 private:
  static const char* bytes(const void*);
  static char* bytes(void*);
};

// Keys and values in pages: key position p of sequence b is row p % size of page table[b * per_sequence + p / size %
// per_sequence] of arrays whose stride[0] leads from page to page. Pages of which no row is seen may have any number in the
// table.
struct Pages {
  const std::int32_t* table = nullptr;      // null: arrays of sequences, no pages
  std::int64_t per_sequence = 0, size = 0;  // size: a multiple of 16
};

// Factors of int8 rows: value = integer * factor. Strides as those of the array, without the last axis.
struct Factors {
  const float* data = nullptr;
  std::ptrdiff_t stride[3] = {};
};

// A bias that depends on the distance key position - query position only: of head h, table[h][distance + reach], where distances
// beyond the reach count as the reach, minus slopes[h] * |distance|. Either may be null.
struct DistanceBias {
  const double* table = nullptr;
  std::int64_t reach = 0;
  const double* slopes = nullptr;
};

// How float32 inputs are multiplied where a matrix unit of bfloat16 does it: as sums of three (float32's accuracy), two or one
// bfloat16 numbers. Other inputs keep the accuracy that they have, or as much of it as is asked for; on instruction sets without
// such a unit, everything is float32.
enum class Precision : std::uint8_t { highest, high, medium };

struct AttentionInputs {
  std::int64_t batch, q_heads, kv_heads, q_len, kv_len, head_dim, v_head_dim;
  Rows<const void> q, k, v;                  // functions about weights alone do not look at v
  Pages pages{};                             // of k and v
  Factors k_factors{}, v_factors{};          // where they are int8
  const std::int64_t* q_rows = nullptr;      // [q_len]: the rows of q, mask and bias that are asked about; null: all, in order
  const MaskPlan* mask = nullptr;            // of this kv_len, all rows of q, this batch and heads (or 1); null: keys that exist
  const std::int64_t* q_lengths = nullptr;   // [batch]: queries that exist, at most q_len; null: q_len
  const std::int64_t* q_offset = nullptr;    // [batch]: position of the first row of q; a distance bias asks for it
  const std::int64_t* kv_lengths = nullptr;  // [batch], without a mask; null: kv_len
  Rows<const void> bias{};                   // added to the scaled score; -inf hides the key; null: none
  std::ptrdiff_t bias_key_stride = 0;
  DistanceBias distance_bias{};
  const double* sinks = nullptr;  // [q_heads]: scores of a key that every row sees and that has no value; null: none
  double scale = 1;
  double softcap = 0;  // scores become softcap * tanh(score / softcap) before the bias; 0: they do not
  Precision precision = Precision::highest;
  int threads = 1;

  // Products and sums are of double where an input is, else of float.
  bool in_double() const { return q.dtype == Dtype::float64 || k.dtype == Dtype::float64 || v.dtype == Dtype::float64; }
};

// out[b, h, i, :] = softmax(cap(scale * q.k) + bias over the keys it sees) . v; zeros where it sees none.
// lse, if its data is not null, has one float (double for sums in double) a row: the natural logarithm of the softmax's
// denominator, -inf where the row sees no key.
void attention(const AttentionInputs& in, Rows<void> out, Rows<void> lse);

enum class Stage { scores, softcap, bias, softmax };

// out is [batch][q_heads][q_len][kv_len] of out_dtype. scores: scale * q.k of every key that exists (others -inf); softcap:
// capped; bias: with bias, hidden keys -inf; softmax: the weights of attention().
void attention_weights(const AttentionInputs& in, Stage stage, Dtype out_dtype, void* out);

// The `count` largest weights of each row, largest first and earlier keys first among equals: keys
// [batch][q_heads][q_len][count], -1 where the row sees fewer, and their weights (float, or double for sums in double).
void largest_weights(const AttentionInputs& in, std::int64_t count, std::int64_t* keys, void* weights);

// The weight that each key gets from all queries of a head, [batch][q_heads][kv_len] of float (double for sums in double).
void weights_per_key(const AttentionInputs& in, void* sums);

}  // namespace maskattn
