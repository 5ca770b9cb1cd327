// How the work of a decode is divided: into splits of the keys, and groups of the rows that read the same keys.
#pragma once

#include "cuda/numbers.hpp"

namespace maskattn::cuda {

// A split is 512 keys from a multiple of that; its pieces go to the warps of a block in turn.
inline constexpr int kSplit = 512, kPiece = 32, kPieces = kSplit / kPiece, kDecodeWarps = 4;

// Rows of a (sequence, key head) are numbered query by query with the heads of the group innermost.
struct DecodeShape {
  int group, rows, splits;
};
inline DecodeShape decode_shape(const AttentionCall& call) {
  const int group = call.q_heads / call.kv_heads;
  return {group, group * call.q_len, call.kv_len / kSplit + (call.kv_len % kSplit != 0)};
}

// The rows and the split of a block. Blocks are numbered sequence by sequence, key head by key head, split by split, group of
// rows by group, so that those that read the same keys run side by side and memory gives them once.
struct DecodeBlock {
  int b, kv_head, first_row, rows, split;

  __device__ int query(const DecodeShape& shape, int r) const { return (first_row + r) / shape.group; }
  __device__ int head(const DecodeShape& shape, int r) const { return kv_head * shape.group + (first_row + r) % shape.group; }
  __device__ std::int64_t partial(const AttentionCall& call, const DecodeShape& shape, int r) const {
    return ((static_cast<std::int64_t>(b) * call.kv_heads + kv_head) * shape.rows + first_row + r) * shape.splits + split;
  }
};
template <int kRows>
__device__ DecodeBlock decode_block(const AttentionCall& call, const DecodeShape& shape) {
  const int row_groups = (shape.rows + kRows - 1) / kRows, of_head = shape.splits * row_groups;
  const int head = static_cast<int>(blockIdx.x) / of_head, of_rows = static_cast<int>(blockIdx.x) % of_head;
  const int b = head / call.kv_heads, first = of_rows % row_groups * kRows;
  const int left = max(shape.group * queries_of(call, b) - first, 0);
  return {b, head % call.kv_heads, first, min(left, kRows), of_rows / row_groups};
}

}  // namespace maskattn::cuda
