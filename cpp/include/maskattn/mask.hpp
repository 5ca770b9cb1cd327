// Masks: expressions over positions, and the plan that they lower to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace maskattn {

// Keys begin <= key < end.
struct Span {
  std::int32_t begin, end;
  bool operator==(const Span&) const = default;
};

// Where a call stands: query i of sequence b is at position q_offset[b] + i; keys at or past kv_lengths[b] do not exist.
// Both vectors have 1 element (the same for every sequence) or `batch`.
struct Geometry {
  std::int64_t batch = 1, heads = 1, q_len = 0, kv_len = 0;
  std::vector<std::int64_t> q_offset, kv_lengths;

  std::int64_t offset_of(std::int64_t b) const { return q_offset[q_offset.size() == 1 ? 0 : static_cast<std::size_t>(b)]; }
  std::int64_t length_of(std::int64_t b) const { return kv_lengths[kv_lengths.size() == 1 ? 0 : static_cast<std::size_t>(b)]; }
  bool operator==(const Geometry&) const = default;
};

class MaskExpr;  // an immutable expression tree
using MaskRef = std::shared_ptr<const MaskExpr>;

// Keys from `left` before the query to `right` after it; nothing bounds a side without a value.
MaskRef mask_band(std::optional<std::int64_t> left, std::optional<std::int64_t> right);
// Keys begin[b] <= key < end[b]; one element serves every sequence.
MaskRef mask_key_range(std::vector<std::int64_t> begin, std::vector<std::int64_t> end);
// The last counts[b] of the keys that exist.
MaskRef mask_last_keys(std::vector<std::int64_t> counts);
// Keys whose byte is not zero, [sequences][keys].
MaskRef mask_keys(const bool* keep, std::int64_t sequences, std::int64_t keys);
// Keys whose id is the id at the query's position, [sequences][length] each. Positions outside belong to no document.
MaskRef mask_documents(const std::int64_t* q_ids, std::int64_t q_length, const std::int64_t* kv_ids, std::int64_t kv_length,
                       std::int64_t sequences);
// keep[b][h][i][key], each extent 1 or the call's; strides in bytes.
MaskRef mask_dense(const bool* keep, const std::int64_t (&shape)[4], const std::int64_t (&strides)[4]);
// Query positions whose byte is not zero see every key, others none, [sequences][length].
MaskRef mask_queries(const bool* keep, std::int64_t sequences, std::int64_t length);
// Keys of the query's own chunk of `size` positions, and, if asked for, of all earlier ones.
MaskRef mask_chunks(std::int64_t size, bool earlier);
// Keys at position + t * stride, -window <= t <= window.
MaskRef mask_dilated(std::int64_t window, std::int64_t stride);
// Pairs of which the query or the key is at one of the positions.
MaskRef mask_global_tokens(std::vector<std::int64_t> positions);
// Node t stands at start + t (no start: the nodes are the last keys); it sees itself, its ancestors, and the keys before the
// tree. Queries that are no nodes see the keys before the tree that are not after them. Throws for parents that are not earlier
// nodes.
MaskRef mask_tree(std::vector<std::int64_t> parents, std::optional<std::int64_t> start);
// keep[b][h][position of the query / size][key / size], the first two extents 1 or the call's.
MaskRef mask_block_sparse(const bool* keep, const std::int64_t (&shape)[4], std::int64_t size);
// The kernel[0] x kernel[1] cells nearest to the query's on a grid of shape[0] x shape[1] positions.
MaskRef mask_neighborhood(const std::int64_t (&shape)[2], const std::int64_t (&kernel)[2]);
// Training of a block diffusion model on [noisy; clean] of `length` positions each.
MaskRef mask_block_diffusion(std::int64_t size, std::int64_t length);
// What function(b, h, q_pos, kv_pos, data) says (not 0: attend). It is called from several threads, once per pair and plan.
// Without `per_sequence` (`per_head`) it is asked for b = 0 (h = 0) only.
using MaskFunction = int (*)(std::int64_t, std::int64_t, std::int64_t, std::int64_t, void*);
MaskRef mask_function(MaskFunction function, void* data, bool per_sequence, bool per_head);
// The same by rows: fill(b, h, q_pos, keys, words) sets the bits of the keys that attend in zeroed words.
using MaskRowFunction = std::function<void(std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::uint64_t*)>;
MaskRef mask_rows(MaskRowFunction fill, bool per_sequence, bool per_head);
MaskRef mask_and(std::vector<MaskRef> terms);
MaskRef mask_or(std::vector<MaskRef> terms);
MaskRef mask_not(MaskRef term);
// The batch size and head count that an expression's parameters fix; 1 where any will do.
std::int64_t mask_batch(const MaskRef& mask);
std::int64_t mask_heads(const MaskRef& mask);

// The keys that one query row sees: `count` sorted, disjoint, non-empty spans; or, where the row is irregular, bits (bit j of
// word w for key 64 w + j) within the one span given.
struct PlanRow {
  const Span* spans;
  int count;
  const std::uint64_t* bits;  // null for a row of spans
};

// A mask lowered for one geometry. Immutable; rows that agree (over sequences and heads, or neighbours) are stored once.
class MaskPlan {
 public:
  // Throws std::invalid_argument when the expression has another batch, head count, q_len or kv_len than the geometry.
  MaskPlan(const MaskRef& mask, Geometry geometry, int threads);

  const Geometry& geometry() const { return geometry_; }
  PlanRow row(std::int64_t b, std::int64_t h, std::int64_t i) const;
  // Sequences and heads that differ: 1 where all agree.
  std::int64_t stored_batch() const { return plan_batch_; }
  std::int64_t stored_heads() const { return plan_heads_; }
  std::size_t bytes() const;

 private:
  struct Row {
    std::int64_t offset;
    std::int32_t count;       // spans
    bool irregular;           // bits decide within the span
    std::int64_t bit_offset;  // into bits_
    bool operator==(const Row&) const = default;
  };
  Geometry geometry_;
  std::int64_t plan_batch_, plan_heads_;  // 1 where all agree
  std::vector<Row> rows_;                 // [plan_batch][plan_heads][q_len]
  std::vector<Span> spans_;
  std::vector<std::uint64_t> bits_;
};

// Pairs of query and key that attend, over all sequences and heads.
std::int64_t count_pairs(const MaskPlan& plan);

// Whether both let the same pairs of the same rows and keys attend; whether all that `a` lets attend `b` does too. Lengths and
// offsets do not count, only what is seen. is_subset throws std::invalid_argument where extents differ.
bool same_pairs(const MaskPlan& a, const MaskPlan& b);
bool is_subset(const MaskPlan& a, const MaskPlan& b);

// Writes [batch][heads][query blocks][key blocks] bytes: how much of each tile of q_size x kv_size is attended. The last tiles of
// an axis may be smaller.
enum class Tile : std::uint8_t { empty, partial, full };
void tile_map(const MaskPlan& plan, std::int64_t q_size, std::int64_t kv_size, Tile* out, int threads);

// Writes [batch][heads][q_len] bytes: 1 where the row sees no key.
void empty_rows(const MaskPlan& plan, bool* out);

// Writes [stored batch][q_len] bytes, 1 where the row of some head sees a key, and [stored batch][kv_len] bytes, 1 where some row
// of some head sees the key. Returns the pairs, over all sequences and heads, of a row and a key in a panel (64 keys from a
// multiple of 64) of which the row sees something.
std::int64_t used(const MaskPlan& plan, bool* rows, bool* keys);

// The plan without the rows and keys whose byte is 0, [stored batch][q_len] and [stored batch][kv_len]: row i is the i-th of its
// sequence that is left, and so are keys. Rows past the last see nothing.
MaskRef mask_compressed(std::shared_ptr<const MaskPlan> plan, const bool* rows, const bool* keys);

// Writes [batch][heads][q_len][kv_len] elements of `element_bytes` (1, 2, 4 or 8) each: the pattern `shown` or `hidden`.
void fill_from_plan(const MaskPlan& plan, void* out, std::size_t element_bytes, std::uint64_t shown, std::uint64_t hidden,
                    int threads);

}  // namespace maskattn
