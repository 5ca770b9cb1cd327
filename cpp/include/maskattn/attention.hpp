// Masked attention over strided arrays in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskattn {

class MaskPlan;

// Element (b, h, row, c) stands at data[b * stride[0] + h * stride[1] + row * stride[2] + c]; strides count elements. Packed
// sequences have `starts` instead of a stride[0]: sequence b begins at row starts[b].
template <class T>
struct Rows {
  T* data = nullptr;
  std::ptrdiff_t stride[3] = {};
  const std::int64_t* starts = nullptr;
  T* at(std::int64_t b, std::int64_t h, std::int64_t row) const {
    return data + b * stride[0] + h * stride[1] + (row + (starts ? starts[b] : 0)) * stride[2];
  }
};

template <class T>
struct AttentionInputs {
  std::int64_t batch, q_heads, kv_heads, q_len, kv_len, head_dim;
  Rows<const T> q, k;
  const MaskPlan* mask = nullptr;  // of this call's q_len and kv_len, its batch and heads (or 1); null: every key that exists
  const std::int64_t* q_lengths = nullptr;   // [batch]: queries that exist, at most q_len; null: q_len
  const std::int64_t* kv_lengths = nullptr;  // [batch], without a mask; null: kv_len
  Rows<const T> bias;                        // added to the scaled score; -inf hides the key; null: none
  std::ptrdiff_t bias_key_stride = 0;
  double scale = 1;
  int threads = 1;
};

// out[b, h, i, :] = softmax(scale * q.k + bias over the keys it sees) . v; zeros where it sees none.
// lse, if its data is not null, has one element a row: the natural logarithm of the sum of the exponentiated scores.
template <class T>
void attention(const AttentionInputs<T>& in, Rows<const T> v, std::int64_t v_head_dim, Rows<T> out, Rows<T> lse);

enum class Stage { scores, bias, softmax };

// out is [batch][q_heads][q_len][kv_len]. scores: scale * q.k of every key that exists (others -inf); bias: with bias, hidden
// keys -inf; softmax: the weights of attention().
template <class T>
void attention_weights(const AttentionInputs<T>& in, Stage stage, T* out);

}  // namespace maskattn
