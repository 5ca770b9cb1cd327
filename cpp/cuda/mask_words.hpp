// Programs of masks (maskattn/mask_program.hpp), run for 64 keys at once: what kernels evaluate, and the host in tests.
#pragma once

#include <cstdint>

#include "cuda/portable.hpp"
#include "maskattn/mask_program.hpp"

namespace maskattn::cuda {

struct ProgramView {
  const MaskStep* steps;
  const std::int64_t* data;
  int count;  // of steps
};

// A row: the i-th of the call, at a position; keys at or past `keys` do not exist.
struct RowPlace {
  int b, h;
  std::int64_t i, position, keys;
};

// Bit j of a word stands for key first + j.
using Word = std::uint64_t;
inline constexpr Word kAllKeys = ~Word{0};

MASKATTN_HD inline Word keys_between(std::int64_t begin, std::int64_t end, std::int64_t first) {
  const std::int64_t from = begin > first ? begin - first : 0, to = end < first + 64 ? end - first : 64;
  return from < to ? (kAllKeys >> (64 - (to - from))) << from : 0;
}

MASKATTN_HD inline std::int64_t rounded_down(std::int64_t x, std::int64_t size) {
  return x >= 0 ? x / size : -((-x + size - 1) / size);
}

MASKATTN_HD inline int index_of(int index, std::int64_t extent) { return extent == 1 ? 0 : index; }

// A line of a table of spans, each of which is `size` keys long for one of its units and moved by `shift`.
struct SpanLine {
  const std::int64_t *first, *last;

  MASKATTN_HD SpanLine(const std::int64_t* table, std::int64_t lines, std::int64_t line)
      : first(table + lines + 1 + table[line]), last(table + lines + 1 + table[line + 1]) {}
  MASKATTN_HD static std::int64_t begin(std::int64_t span) { return span & 0xffffffff; }
  MASKATTN_HD static std::int64_t end(std::int64_t span) { return span >> 32; }

  MASKATTN_HD Word word(std::int64_t first_key, std::int64_t size = 1, std::int64_t shift = 0) const {
    const std::int64_t *low = first, *high = last;  // the first span that ends behind the first key
    while (low < high) {
      const std::int64_t* middle = low + (high - low) / 2;
      if (end(*middle) * size + shift <= first_key)
        low = middle + 1;
      else
        high = middle;
    }
    Word word = 0;
    for (; low < last && begin(*low) * size + shift < first_key + 64; ++low)
      word |= keys_between(begin(*low) * size + shift, end(*low) * size + shift, first_key);
    return word;
  }
};

// Leaves, in the order of MaskOp. `a` are a step's parameters, `data` is the program's.

MASKATTN_HD inline Word band_word(const std::int64_t* a, const RowPlace& row, std::int64_t first) {
  return keys_between(a[0] ? row.position - a[1] : first, a[2] ? row.position + a[3] + 1 : first + 64, first);
}

MASKATTN_HD inline Word documents_word(const std::int64_t* a, const std::int64_t* data, const RowPlace& row, std::int64_t first) {
  if (row.position < 0 || row.position >= a[1]) return 0;
  const std::int64_t line = data[a[0] + index_of(row.b, a[2]) * a[1] + row.position];
  return line < 0 ? 0 : SpanLine(data + a[3], a[4], line).word(first);
}

MASKATTN_HD inline Word dense_word(const std::int64_t* a, const std::int64_t* data, const RowPlace& row, std::int64_t first) {
  const std::int64_t line = (index_of(row.b, a[1]) * a[2] + index_of(row.h, a[2])) * a[3] + (a[3] == 1 ? 0 : row.i);
  const std::int64_t words = (a[4] + 63) / 64;
  if (a[4] == 1) return data[a[0] + line * words] & 1 ? kAllKeys : 0;  // one answer for every key
  return first < a[4] ? static_cast<Word>(data[a[0] + line * words + first / 64]) : 0;
}

MASKATTN_HD inline Word queries_word(const std::int64_t* a, const std::int64_t* data, const RowPlace& row) {
  if (row.position < 0 || row.position >= a[1] * 64) return 0;
  const std::int64_t word = data[a[0] + index_of(row.b, a[2]) * a[1] + row.position / 64];
  return word >> (row.position % 64) & 1 ? kAllKeys : 0;
}

MASKATTN_HD inline Word chunks_word(const std::int64_t* a, const RowPlace& row, std::int64_t first) {
  const std::int64_t begin = rounded_down(row.position, a[0]) * a[0];
  return keys_between(a[1] ? first : begin, begin + a[0], first);
}

// Keys position + t * stride, -window <= t <= window: from the first such key of the word on.
MASKATTN_HD inline Word dilated_word(const std::int64_t* a, const RowPlace& row, std::int64_t first) {
  const std::int64_t window = a[0], stride = a[1], begin = row.position - window * stride, end = row.position + window * stride;
  if (stride == 1) return keys_between(begin, end + 1, first);
  std::int64_t key = begin >= first ? begin : begin - rounded_down(begin - first, stride) * stride;
  Word word = 0;
  for (; key <= end && key < first + 64; key += stride) word |= Word{1} << (key - first);
  return word;
}

MASKATTN_HD inline Word global_tokens_word(const std::int64_t* a, const std::int64_t* data, const RowPlace& row,
                                           std::int64_t first) {
  const std::int64_t *low = data + a[0], *const last = low + a[1], *high = last;
  while (low < high) {
    const std::int64_t* middle = low + (high - low) / 2;
    if (*middle < row.position)
      low = middle + 1;
    else
      high = middle;
  }
  return low < last && *low == row.position ? kAllKeys : SpanLine(data + a[2], 1, 0).word(first);
}

MASKATTN_HD inline Word tree_word(const std::int64_t* a, const std::int64_t* data, const RowPlace& row, std::int64_t first) {
  const std::int64_t start = a[0] ? a[1] : row.keys - a[2], node = row.position - start;
  const Word before = keys_between(first, start < row.position + 1 ? start : row.position + 1, first);
  return node < 0 || node >= a[2] ? before : before | SpanLine(data + a[3], a[2], node).word(first, 1, start);
}

MASKATTN_HD inline Word block_sparse_word(const std::int64_t* a, const std::int64_t* data, const RowPlace& row,
                                          std::int64_t first) {
  if (row.position < 0 || row.position / a[4] >= a[3]) return 0;
  const std::int64_t line = (index_of(row.b, a[1]) * a[2] + index_of(row.h, a[2])) * a[3] + row.position / a[4];
  return SpanLine(data + a[0], a[1] * a[2] * a[3], line).word(first, a[4]);
}

// Positions are the cells of a grid, line by line; the kernel around a cell is pushed inside at the edges.
MASKATTN_HD inline Word neighborhood_word(const std::int64_t* a, const RowPlace& row, std::int64_t first) {
  const std::int64_t height = a[0], width = a[1], rows = a[2], columns = a[3];
  if (row.position < 0 || row.position >= height * width) return 0;
  const auto pushed = [](std::int64_t from, std::int64_t most) { return from < 0 ? 0 : from > most ? most : from; };
  const std::int64_t top = pushed(row.position / width - rows / 2, height - rows);
  const std::int64_t left = pushed(row.position % width - columns / 2, width - columns);
  const std::int64_t reached = rounded_down(first - left - columns, width) + 1;  // the first line that ends behind the first key
  Word word = 0;
  for (std::int64_t y = reached > top ? reached : top; y < top + rows && y * width + left < first + 64; ++y)
    word |= keys_between(y * width + left, y * width + left + columns, first);
  return word;
}

MASKATTN_HD inline Word block_diffusion_word(const std::int64_t* a, const RowPlace& row, std::int64_t first) {
  const std::int64_t size = a[0], length = a[1], q = row.position;
  if (q < 0 || q >= 2 * length) return 0;
  const std::int64_t begin = q % length / size * size, end = begin + size < length ? begin + size : length;
  if (q >= length) return keys_between(length, length + end, first);
  return keys_between(begin, end, first) | keys_between(length, length + begin, first);
}

// Bools in device memory; those past the last key are not read.
MASKATTN_HD inline Word bools_word(const std::int64_t* a, const RowPlace& row, std::int64_t first) {
  const std::int64_t stride = a[4];
  const auto* at = reinterpret_cast<const std::uint8_t*>(a[0]) + row.b * a[1] + row.h * a[2] + row.i * a[3] + first * stride;
  const int count = row.keys - first < 64 ? static_cast<int>(row.keys - first) : 64;
  Word word = 0;
  if (stride == 1 && count == 64 && reinterpret_cast<std::uintptr_t>(at) % 8 == 0) {
    constexpr Word gather = 0x0102040810204080u;  // a product with it brings byte j, 0 or 1, to bit 56 + j
    for (int eight = 0; eight < 8; ++eight) word |= (reinterpret_cast<const Word*>(at)[eight] * gather >> 56) << (8 * eight);
    return word;
  }
  for (int j = 0; j < count; ++j) word |= Word{at[j * stride] != 0} << j;
  return word;
}

MASKATTN_HD inline Word leaf_word(const MaskStep& step, const std::int64_t* data, const RowPlace& row, std::int64_t first) {
  const std::int64_t* a = step.a;
  switch (step.op) {
    case MaskOp::band: return band_word(a, row, first);
    case MaskOp::key_range: {
      const std::int64_t at = a[0] + index_of(row.b, a[1]);
      return keys_between(data[at], data[at + a[1]], first);
    }
    case MaskOp::last_keys: return keys_between(row.keys - data[a[0] + index_of(row.b, a[1])], row.keys, first);
    case MaskOp::keys: return SpanLine(data + a[0], a[1], index_of(row.b, a[1])).word(first);
    case MaskOp::documents: return documents_word(a, data, row, first);
    case MaskOp::dense: return dense_word(a, data, row, first);
    case MaskOp::queries: return queries_word(a, data, row);
    case MaskOp::chunks: return chunks_word(a, row, first);
    case MaskOp::dilated: return dilated_word(a, row, first);
    case MaskOp::global_tokens: return global_tokens_word(a, data, row, first);
    case MaskOp::tree: return tree_word(a, data, row, first);
    case MaskOp::block_sparse: return block_sparse_word(a, data, row, first);
    case MaskOp::neighborhood: return neighborhood_word(a, row, first);
    case MaskOp::block_diffusion: return block_diffusion_word(a, row, first);
    case MaskOp::bools: return bools_word(a, row, first);
    case MaskOp::fold: break;
  }
  return 0;
}

// The keys that the row sees of the 64 from `first`, a multiple of 64, on.
MASKATTN_HD inline Word mask_word(const ProgramView& program, const RowPlace& row, std::int64_t first) {
  const Word exist = keys_between(0, row.keys, first);
  if (exist == 0) return 0;
  Word below[kMaskDepth] = {}, top = 0;  // the stack, whose top is in a register
  int depth = 0;
  for (int s = 0; s < program.count; ++s) {
    const MaskStep& step = program.steps[s];
    // What cannot change the top is not asked.
    if (step.op != MaskOp::fold && step.fold == MaskFold::intersect && (top & exist) == 0) continue;
    if (step.op != MaskOp::fold && step.fold == MaskFold::unite && (top & exist) == exist) continue;
    Word word = step.op == MaskOp::fold ? top : leaf_word(step, program.data, row, first);
    if (step.negated) word = ~word;
    if (step.op == MaskOp::fold) top = below[--depth];
    if (step.fold == MaskFold::push) {
      below[depth++] = top;
      top = word;
    } else {
      top = step.fold == MaskFold::intersect ? top & word : top | word;
    }
  }
  return top & exist;
}

MASKATTN_HD inline bool sees(const ProgramView& program, const RowPlace& row, std::int64_t key) {
  return mask_word(program, row, key / 64 * 64) >> (key % 64) & 1;
}

}  // namespace maskattn::cuda
