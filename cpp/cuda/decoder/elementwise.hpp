// What the layers of a Transformer do between products, on a device. Activations are float32 wherever they are summed; `dtype` is
// the type of weights, and of what products and attention read.
#pragma once

#include <cstdint>

#include "cuda/decoder/functions.hpp"
#include "cuda/portable.hpp"
#include "maskattn/attention.hpp"

namespace maskattn::cuda {

// Layer normalisation (arXiv:1607.06450), or by the root of the mean square alone (arXiv:1910.07467).
struct Norm {
  const float* weight = nullptr;  // null: no norm
  const float* bias = nullptr;    // or null
  float eps = 0;
  bool root = false;

  explicit operator bool() const { return weight != nullptr; }
};

// [rows][width], out of `dtype`; out may be x where that is float32.
void normalize(const Norm& norm, int rows, int width, const float* x, void* out, Dtype dtype, Stream stream);

// out = function(x); gated: x has 2 * width elements a row, and out = function(first half) * second half.
void activate(Function function, bool gated, int rows, int width, const float* x, void* out, Dtype dtype, Stream stream);

// Rounded to `dtype`.
void convert(std::int64_t count, const float* x, void* out, Dtype dtype, Stream stream);
void add(std::int64_t count, const float* x, float* to, Stream stream);
// x becomes cap * tanh(x / cap).
void cap_scores(std::int64_t count, float* x, float cap, Stream stream);

// out[i] = from[rows[i]], rows of `width` elements of `element_bytes`, 2 or 4; row -1: zeros.
void gather(int count, int width, int element_bytes, const void* from, const int* rows, void* out, Stream stream);

// x[row] = scale * table[tokens[row]].
void embed(int rows, int width, const int* tokens, const void* table, Dtype dtype, float scale, float* x, Stream stream);
// What is added to embeddings: the row of a token's segment, and the one of its position (the last one past the end).
struct AddedRows {
  const float* segments = nullptr;   // [count][width], or null
  const int* segment_of = nullptr;   // [rows]; null: all 0
  const float* positions = nullptr;  // [position_count][width], or null
  const int* position_of = nullptr;  // [rows]
  int position_count = 0, position_offset = 0;
};
void add_rows(int rows, int width, const AddedRows& added, float* x, Stream stream);

// Where heads go: position p of sequence b and head h to page * strides[0] + h * strides[1] + p % page_size * strides[2], page =
// table[b * per_sequence + p / page_size]. Without a table the page is b and holds all positions.
struct HeadsTarget {
  void* data = nullptr;
  std::int64_t strides[3] = {};
  const int* table = nullptr;
  int per_sequence = 0, page_size = 0;
};

// Rows of projections, [rows][(q_heads + 2 * kv_heads) * head_dim], as queries, keys and values of `dtype`: normalised head by
// head, turned, stored.
struct HeadsCall {
  int rows, q_heads, kv_heads, head_dim;  // q_heads or kv_heads may be 0
  const float* joined;
  Norm q_norm, k_norm;
  const float *cosines = nullptr, *sines = nullptr;  // [rows][rotary_half]
  int rotary_half = 0;
  const int* sequences;  // [rows]
  const int* indices;    // [rows], of the row among its sequence's: where queries go
  const int* positions;  // [rows]: where keys and values go
  HeadsTarget q, keys, values;
};
void store_heads(const HeadsCall& call, Dtype dtype, Stream stream);

// Rows of pages [slots][dim] of each head, copied from page sources[i] to page targets[i]: the first `slots` of `page_size`.
struct PageCopy {
  void* pool;  // [pages][heads][page_size][dim]
  int heads, page_size, dim, element_bytes;
};
void copy_pages(const PageCopy& pool, int count, const int* sources, const int* targets, int slots, Stream stream);

}  // namespace maskattn::cuda
