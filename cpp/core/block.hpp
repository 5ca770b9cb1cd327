// A block: up to kBlockRows query rows that share one key head, and its walk over the key segments. Prefill, decode and
// attention_weights are all made of this; a decoded token is a block of one row (per query head of the group).
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/table.hpp"
#include "maskattn/attention.hpp"
#include "maskattn/mask.hpp"

namespace maskattn {

// Quotient and remainder. Most calls divide by one (a group of one head, a batch of one), and a block of a small call takes
// little longer than a few divisions.
struct Parts {
  std::int64_t quotient, remainder;
};
inline Parts divide(std::int64_t x, std::int64_t by) { return by == 1 ? Parts{x, 0} : Parts{x / by, x % by}; }

// Rows of a (sequence, key head) are ordered query by query, the heads of the group innermost, so that neighbours see much
// the same keys.
struct BlockPlace {
  std::int64_t b, kv_head, first_row;
  int rows;
};

// How a call is cut into blocks. Results do not depend on it.
struct Blocking {
  std::int64_t group, block_rows, blocks;  // blocks: of a (sequence, key head) with q_len queries

  static Blocking of(const AttentionInputs& in, int threads);
  // No rows where the block lies past the queries that sequence b has.
  BlockPlace place(const AttentionInputs& in, std::int64_t b, std::int64_t kv_head, std::int64_t block) const;
};

// A call as all its blocks see it, computing in T.
template <class T>
struct Call {
  Call(const AttentionInputs& in, int threads, std::int64_t v_head_dim, const Kernels& kernels, const MatrixTable* matrix);

  const AttentionInputs& in;
  const KernelTable<T>& kernels;    // looked up once: set_isa may be called meanwhile
  const MatrixTable* const matrix;  // what multiplies in `attend`, if it is not the vector kernels
  const Blocking cut;
  const std::int64_t columns;  // v_head_dim rounded up to vectors, 0 where there are no values
  bool biased_by_distance() const { return in.distance_bias.table || in.distance_bias.slopes; }
  bool biased() const { return in.bias.data || biased_by_distance(); }
  bool reads_queries_in_place() const;
};

// Memory of one thread, kept between calls.
template <class T>
struct Scratch {
  T *queries, *panel, *scores, *bias, *values, *partial, *out;
  MaskWord* mask;
  char *split_queries, *packed_keys, *packed_values, *matrix;  // of a MatrixTable
  static Scratch get(const Call<T>& call);
};

// Where the rows of a segment are, for PieceMemory.
struct SegmentRows {
  const void* piece[kSegment / kPiece + kPiecesAhead];
  const float* scales[kSegment / kPiece + kPiecesAhead];
};

// The state of an online softmax for each row of a block, see state.hpp.
template <class T>
struct State {
  T maximum[kBlockRows], sum[kBlockRows];
  void clear(int rows);
};

template <class T>
class Block {
 public:
  Block(const Call<T>& call, const BlockPlace& place);

  // Segments [first, last) hold every key that some row may see.
  std::int64_t first_segment() const { return first_segment_; }
  std::int64_t last_segment() const { return last_segment_; }

  // Takes a segment into the state and into out, [rows][columns].
  void attend(std::int64_t segment, State<T>& state, T* out);

  // The steps of that, for those who want to see the weights.
  //
  // Mask, bias and scores q.k of a segment into scratch; false when no row sees a key of it (nothing is read then).
  bool score(std::int64_t segment);
  void cap();  // where there is a softcap
  // Scores to weights; `maximum` and `sum` per row, see SoftmaxArgs.
  void softmax(T* maximum, T* sum);
  std::int64_t head(int row) const { return place_.kv_head * call_.cut.group + parts(row).remainder; }
  std::int64_t query(int row) const { return parts(row).quotient; }
  int rows() const { return place_.rows; }
  bool sees(int row, int key) const {  // in the segment scored last
    return !mask_ || mask_[row * kPanels + key / kPanel] >> (key % kPanel) & 1;
  }
  const T* bias(int row) const { return bias_[row]; }  // likewise, where there is one: [kSegment]
  const Scratch<T>& scratch() const { return scratch_; }

 private:
  // out = out * old_scale + weights.v * new_scale, [rows][columns].
  void values(std::int64_t segment, const T* old_scale, const T* new_scale, T* out);
  void attend_with_matrix(std::int64_t segment, State<T>& state, T* out);
  void split_queries();
  // Mask and bias of a segment; false when no row sees a key of it.
  bool look(std::int64_t segment);
  SoftmaxArgs<T> softmax_args() const;
  CapArgs<T> cap_args() const;
  Parts parts(int row) const { return divide(place_.first_row + row, call_.cut.group); }
  std::int64_t row_of(int row) const { return in_.q_rows ? in_.q_rows[query(row)] : query(row); }  // in q, mask and bias
  void read_queries();
  bool mask_segment(std::int64_t segment);
  bool find_seen();
  void bias_by_distance(std::int64_t begin);
  bool bias_from_array(std::int64_t begin);
  PieceMemory locate(const Rows<const void>& array, const Factors& factors, std::int64_t segment, SegmentRows& to) const;

  const Call<T>& call_;
  const AttentionInputs& in_;
  const KernelTable<T>& kernels_;
  const BlockPlace place_;
  Scratch<T> scratch_;
  Span whole_;  // where there is no mask: every key that exists
  const T *queries_[kBlockRows], *bias_[kBlockRows];
  PlanRow plan_[kBlockRows];
  // Every row sees [full_begin_, full_end_), if that is not empty.
  std::int64_t full_begin_, full_end_, first_segment_, last_segment_;
  // Of the segment under way: null where every row sees every key; and the keys of each panel that some row sees.
  const MaskWord* mask_ = nullptr;
  MaskWord seen_[kPanels];
  SegmentRows rows_;
};

template <class T>
inline constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;

}  // namespace maskattn
