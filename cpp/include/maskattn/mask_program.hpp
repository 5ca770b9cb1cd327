// A mask expression as flat data, for machines that cannot follow pointers into this one's memory.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "maskattn/mask.hpp"

namespace maskattn {

// What a step asks. `a` are its parameters; those called "at" are indices into the program's data.
enum class MaskOp : std::int32_t {
  band,             // has left, left, has right, right: keys from position - left to position + right
  key_range,        // at, sequences: begin[sequences], end[sequences]
  last_keys,        // at, sequences: counts[sequences]
  keys,             // table, sequences: spans of keys, a line per sequence
  documents,        // at, length, sequences, table, its lines: line [sequences][length] by the query's position, -1: none
  dense,            // at, extents[4]: bits [b][h][i][(keys + 63) / 64 words]
  queries,          // at, words, sequences: bits [sequences][words * 64] by the query's position
  chunks,           // size, earlier
  dilated,          // window, stride
  global_tokens,    // at, count, table: sorted positions; the same as spans of keys
  tree,             // has start, start, nodes, table: of each node the spans of its ancestors and itself, from the tree's start
  block_sparse,     // table, extents[3], size: spans of blocks, a line for each [b][h][row of blocks]
  neighborhood,     // shape[2], kernel[2]
  block_diffusion,  // size, length
  bools,            // address, strides[4] in bytes: an array of bools in the memory of whoever runs the program
  fold,             // the two sets on top of the stack, into one
};

// What becomes of a step's set: a new top of the stack, or folded into the top that is there.
enum class MaskFold : std::int16_t { push, intersect, unite };

struct MaskStep {
  MaskOp op;
  MaskFold fold;
  std::int16_t negated;  // the step's set is the keys that it does not name
  std::int64_t a[7];
};
static_assert(sizeof(MaskStep) == 64);

// Steps in postfix order, with no more than kMaskDepth sets on the stack.
//
// A table of spans is begin[lines + 1], indices of spans from the first one on, and then the spans, sorted and disjoint in each
// line: begin in the lower half of an element, end in the upper one.
struct MaskProgram {
  std::vector<MaskStep> steps;
  std::vector<std::int64_t> data;
  std::int64_t spans = 0;  // a row has no more
};
inline constexpr int kMaskDepth = 8;

// None for what a function decides, for what is left of a plan when keys are deleted, and for expressions that nest too deeply.
std::optional<MaskProgram> mask_program(const MaskRef& mask);

}  // namespace maskattn
