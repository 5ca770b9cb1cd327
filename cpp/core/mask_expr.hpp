// The nodes of a mask expression. A node answers one question: which keys does a row see?
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "maskattn/mask.hpp"

namespace maskattn {

// The keys of one row: spans while they are few, else bits over all of kv_len (`irregular`).
struct KeySet {
  std::vector<Span> spans;
  std::vector<std::uint64_t> bits;
  bool irregular = false;
};

// One row, where it stands, and scratch sets for the nodes above the leaves.
class RowQuery {
 public:
  std::int64_t b, h, i, position, keys;  // keys: those that exist for sequence b

  // Scratch, one set per level of the expression.
  KeySet& scratch(std::size_t depth) {
    while (pool_.size() <= depth) pool_.emplace_back();
    return pool_[depth];
  }

 private:
  std::deque<KeySet> pool_;
};

class MaskExpr {
 public:
  virtual ~MaskExpr() = default;
  // Fills `out` (empty on entry). Spans are sorted and disjoint, clipped to [0, query.keys).
  virtual void row(RowQuery& query, std::size_t depth, KeySet& out) const = 0;
  // Extents that parameters fix: 1 where any sequence count (head count) will do.
  virtual std::int64_t batch() const { return 1; }
  virtual std::int64_t heads() const { return 1; }
  // Throws std::invalid_argument where the node cannot speak of this geometry.
  virtual void check(const Geometry&) const {}
};

// Set algebra, in core/key_set.cpp. Bits have (keys + 63) / 64 words, none set past `keys`.
void make_bits(KeySet& set, std::int64_t keys);
void intersect(KeySet& into, KeySet& other, std::int64_t keys);
void unite(KeySet& into, KeySet& other, std::int64_t keys);
void complement(KeySet& set, std::int64_t keys);
// The smaller of the two forms.
void normalize(KeySet& set, std::int64_t keys);

void set_bits(std::uint64_t* words, std::int64_t begin, std::int64_t end);

}  // namespace maskattn
