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
// What a function says. Before rows are lowered it is asked about the pairs of the call, each once: answers are kept with the
// mask (256 MB of bits; what is more is asked again by the next plan), so that longer plans ask about new rows and keys only. It
// must always answer the same. Without `per_sequence` (`per_head`) it is asked for b = 0 (h = 0) only.
//
// function(b, h, q_pos, kv_pos, data), not 0: attend; called from several threads.
using MaskFunction = int (*)(std::int64_t, std::int64_t, std::int64_t, std::int64_t, void*);
MaskRef mask_function(MaskFunction function, void* data, bool per_sequence, bool per_head);
// answer(tile, keep) writes keep[rows][keys] for the positions from q_begin and the keys from kv_begin on, up to about 2^20
// pairs; called from the thread that makes a plan, without a lock held.
struct MaskTile {
  std::int64_t b, h, q_begin, rows, kv_begin, keys;
};
using MaskTileFunction = std::function<void(const MaskTile&, bool*)>;
MaskRef mask_tiles(MaskTileFunction answer, bool per_sequence, bool per_head);
MaskRef mask_and(std::vector<MaskRef> terms);
MaskRef mask_or(std::vector<MaskRef> terms);
MaskRef mask_not(MaskRef term);
// Throws what a plan for the geometry would.
void check_mask(const MaskRef& mask, const Geometry& geometry);
// The batch size and head count that an expression's parameters fix; 1 where any will do.
std::int64_t mask_batch(const MaskRef& mask);
std::int64_t mask_heads(const MaskRef& mask);

// The keys that one query row sees: `count` sorted, disjoint, non-empty spans; or, where the row is irregular, bits (bit j of
// word w for key 64 w + j) within the one span given.
struct PlanRow {
  const Span* spans;
  int count;
  const std::uint64_t* bits;                        // null for a row of spans
  bool operator==(const PlanRow&) const = default;  // the same storage
};

class PlanPiece;    // up to 512 rows
struct PlanGrowth;  // rows that a plan is about to take in

// A mask lowered for one geometry. Rows stand in pieces, which sequences, heads, copies and slices share where they agree: a copy
// or a slice costs a pointer for every 512 rows.
class MaskPlan {
 public:
  // Throws std::invalid_argument when the expression has another batch, head count, q_len or kv_len than the geometry.
  MaskPlan(const MaskRef& mask, Geometry geometry, int threads);

  const Geometry& geometry() const { return geometry_; }
  const MaskRef& mask() const { return mask_; }
  // Rows of the original call that a slice has left out in front.
  std::int64_t row_base() const { return row_base_; }
  PlanRow row(std::int64_t b, std::int64_t h, std::int64_t i) const;
  // Sequences and heads that differ: 1 where all agree.
  std::int64_t stored_batch() const { return plan_batch_; }
  std::int64_t stored_heads() const { return plan_heads_; }
  // Memory that the plan keeps alive, what it shares with other plans included.
  std::size_t bytes() const;

  // Rows [begin, end), 0 <= begin <= end <= q_len, of the same keys.
  MaskPlan slice(std::int64_t begin, std::int64_t end) const;

  // Takes in n rows, and n keys of every sequence, behind those there are, as when tokens are decoded; q_offset stays. Rows that
  // see none of the new keys are not lowered again. Throws what the constructor would for that geometry, and changes nothing.
  void extend(std::int64_t n, int threads);
  // extend() in two steps, for a plan that others read meanwhile: the work, and taking its result in, which only a plan of the
  // geometry that the work was done for does (false: it has another by now).
  std::shared_ptr<const PlanGrowth> growth(std::int64_t n, int threads) const;
  bool grow(const PlanGrowth& growth);

 private:
  using Strip = std::vector<std::shared_ptr<PlanPiece>>;  // the rows of a (sequence, head)
  MaskPlan() = default;
  void take(std::int64_t kept, const std::vector<Strip>& added);

  MaskRef mask_;
  Geometry geometry_;
  std::int64_t row_base_ = 0;
  std::int64_t plan_batch_, plan_heads_;  // 1 where all agree
  std::vector<std::uint32_t> strip_of_;   // [plan_batch][plan_heads]
  std::vector<Strip> strips_;             // that differ
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

// Writes [batch][heads][q_len][kv_len] elements of `element_bytes` (1, 2, 4 or 8) each: the pattern `shown` or `hidden`. `out`
// may be unaligned.
void fill_from_plan(const MaskPlan& plan, void* out, std::size_t element_bytes, std::uint64_t shown, std::uint64_t hidden,
                    int threads);

// Writes [batch][heads][q_len][(kv_len + 7) / 8] bytes: bit j of byte i is 1 where key 8 i + j attends.
void bits_from_plan(const MaskPlan& plan, std::uint8_t* out, int threads);

}  // namespace maskattn
