// The nodes of a mask expression. A node answers one question: which keys does a row see?
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <unordered_map>
#include <vector>

#include "maskattn/mask.hpp"
#include "maskattn/mask_program.hpp"

namespace maskattn {

// The keys of one row: spans while they are few, else bits over all of kv_len (`irregular`).
struct KeySet {
  std::vector<Span> spans;
  std::vector<std::uint64_t> bits;
  bool irregular = false;
};

class MaskExpr;
class ProgramWriter;

// How a node's set enters a program.
struct StepUse {
  MaskFold fold;
  bool negated;
};

// The rows that are about to be lowered: those from `first` on, of batch x heads strips (1 where all agree).
struct RowRange {
  const Geometry& geometry;
  std::int64_t batch, heads, first;
  int threads;
};

// What leaves have found out about those rows beforehand.
using Prepared = std::unordered_map<const MaskExpr*, std::shared_ptr<const void>>;

// One row, where it stands, and scratch sets for the nodes above the leaves.
class RowQuery {
 public:
  explicit RowQuery(const Prepared& prepared) : prepared(prepared) {}

  const Prepared& prepared;
  std::int64_t b, h, i, position, keys;  // keys: those that exist for sequence b

  // Scratch, one set per level of the expression.
  KeySet& scratch(std::size_t depth) {
    while (pool_.size() <= depth) pool_.push_back(std::make_unique<KeySet>());
    return *pool_[depth];
  }

 private:
  std::vector<std::unique_ptr<KeySet>> pool_;
};

inline constexpr std::int64_t kNoPosition = std::numeric_limits<std::int64_t>::min();
inline constexpr std::int64_t kEveryPosition = std::numeric_limits<std::int64_t>::max();

class MaskExpr {
 public:
  virtual ~MaskExpr() = default;
  // Called once for each range of rows before row() is, without a lock held.
  virtual void prepare(const RowRange&, Prepared&) const {}
  // Fills `out` (empty on entry). Spans are sorted and disjoint, clipped to [0, query.keys).
  virtual void row(RowQuery& query, std::size_t depth, KeySet& out) const = 0;
  // Extents that parameters fix: 1 where any sequence count (head count) will do.
  virtual std::int64_t batch() const { return 1; }
  virtual std::int64_t heads() const { return 1; }
  // Whether rows differ between sequences (heads) though no parameter fixes how many there are.
  virtual bool varies_by_batch() const { return false; }
  virtual bool varies_by_head() const { return false; }
  // Rows at positions before this one see none of the keys at or past `keys`: they stay as they are when a sequence of `keys`
  // keys grows. Where a row may look ahead without bound, there is no such position.
  virtual std::int64_t settled_before(std::int64_t keys) const {
    (void)keys;
    return kNoPosition;
  }
  // Whether keys are counted from the last one, so that every row may change when a sequence grows.
  virtual bool counts_from_end() const { return false; }
  // Throws std::invalid_argument where the node cannot speak of this geometry.
  virtual void check(const Geometry&) const {}
  // Writes the node's steps; false where it has none.
  virtual bool write(ProgramWriter&, StepUse) const { return false; }
  // Operators on the longest way to a leaf.
  virtual int height() const { return 0; }
};

// Keys [begin, end), clipped to those that exist, behind the spans that `out` holds.
inline void push_clipped(KeySet& out, std::int64_t begin, std::int64_t end, std::int64_t keys) {
  begin = std::max<std::int64_t>(begin, 0);
  end = std::min(end, keys);
  if (begin < end) out.spans.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
}
inline void push_clipped(KeySet& out, const std::vector<Span>& spans, std::int64_t keys) {
  for (const Span span : spans) push_clipped(out, span.begin, span.end, keys);
}

// The runs of equal values in [0, count), as emit(value, span).
template <class Value, class Emit>
void for_each_equal_run(const Value* values, std::int64_t count, const Emit& emit) {
  for (std::int64_t begin = 0, end; begin < count; begin = end) {
    for (end = begin + 1; end < count && values[end] == values[begin];) ++end;
    emit(values[begin], Span{static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
  }
}

// The index of sequence b (or head h) in an array that has one entry for all of them, or one for each.
inline std::size_t pick(std::int64_t index, std::size_t extent) { return extent == 1 ? 0 : static_cast<std::size_t>(index); }

// x / size, rounded down.
inline std::int64_t floor_div(std::int64_t x, std::int64_t size) { return x >= 0 ? x / size : -((-x + size - 1) / size); }

// Throws std::invalid_argument where a mask that was made for `have` of something is asked about `want`.
void check_covers(const char* what, std::int64_t have, std::int64_t want, const char* unit);

// Set algebra, in core/key_set.cpp. Bits have (keys + 63) / 64 words, none set past `keys`.
void make_bits(KeySet& set, std::int64_t keys);
void intersect(KeySet& into, KeySet& other, std::int64_t keys);
void unite(KeySet& into, KeySet& other, std::int64_t keys);
void complement(KeySet& set, std::int64_t keys);
// The smaller of the two forms; bits with one span from the first key to the last.
void normalize(KeySet& set, std::int64_t keys);

void set_bits(std::uint64_t* words, std::int64_t begin, std::int64_t end);
// Sets the bits from `at` on whose byte of keep[count] is true.
void pack_bits(const bool* keep, std::int64_t count, std::uint64_t* words, std::int64_t at);

}  // namespace maskattn
