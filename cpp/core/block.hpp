// A block: up to kBlockRows query rows that share one key head, and its walk over the key segments. Prefill, decode and
// attention_weights are all made of this; a decoded token is a block of one row (per query head of the group).
#pragma once

#include <cstdint>

#include "../kernels/table.hpp"
#include "maskattn/attention.hpp"
#include "maskattn/mask.hpp"

namespace maskattn {

// Rows of a (sequence, key head) are ordered query by query, the heads of the group innermost, so that neighbours see much
// the same keys.
struct BlockPlace {
  std::int64_t b, kv_head, first_row;
  int rows;
};

// How a call is cut into blocks. Results do not depend on it.
struct Blocking {
  std::int64_t group, block_rows, blocks;  // blocks: of a (sequence, key head) with q_len queries

  template <class T>
  static Blocking of(const AttentionInputs<T>& in);
  // No rows where the block lies past the queries that sequence b has.
  template <class T>
  BlockPlace place(const AttentionInputs<T>& in, std::int64_t b, std::int64_t kv_head, std::int64_t block) const;
};

// Memory of one thread, kept between calls.
template <class T>
struct Scratch {
  T *negated, *panel, *scores, *bias, *values, *partial, *out;  // negated: queries, where the scale is negative
  MaskWord* mask;
  static Scratch get(std::int64_t head_dim, std::int64_t columns, bool with_bias, bool negative_scale);
};

template <class T>
class Block {
 public:
  // `kernels`: the same for all blocks of a call. `columns`: v_head_dim rounded up to their vectors, 0 where there are no values.
  Block(const AttentionInputs<T>& in, const KernelTable<T>& kernels, const Blocking& blocking, const BlockPlace& place,
        std::int64_t columns);

  // Segments [first, last) hold every key that some row may see.
  std::int64_t first_segment() const { return first_segment_; }
  std::int64_t last_segment() const { return last_segment_; }

  // Mask, bias and scores of a segment into scratch; false when no row sees a key of it (nothing is read then).
  bool score(std::int64_t segment);
  // Scores to weights; `maximum` and `sum` per row, see SoftmaxArgs.
  void softmax(T* maximum, T* sum);
  // out = out * old_scale + weights.v * new_scale, [rows][columns]. `v`: the key head's values.
  void values(std::int64_t segment, const T* v, std::ptrdiff_t v_stride, int v_head_dim, const T* old_scale, const T* new_scale,
              T* out);

  std::int64_t head(int row) const { return place_.kv_head * group_ + (place_.first_row + row) % group_; }
  std::int64_t query(int row) const { return (place_.first_row + row) / group_; }
  int rows() const { return place_.rows; }
  bool sees(int row, int key) const {  // in the segment scored last
    return !mask_ || mask_[row * kPanels + key / kPanel] >> (key % kPanel) & 1;
  }
  const Scratch<T>& scratch() const { return scratch_; }

 private:
  void negate_queries();
  bool mask_segment(std::int64_t segment);
  void add_bias(std::int64_t segment);
  MaskWord any_row(int panel) const;

  const AttentionInputs<T>& in_;
  const KernelTable<T>& kernels_;
  const BlockPlace place_;
  const std::int64_t group_, columns_;
  Scratch<T> scratch_;
  Span whole_;  // where there is no mask: every key that exists
  const T* queries_[kBlockRows];
  PlanRow plan_[kBlockRows];
  // Every row sees [full_begin_, full_end_), if that is not empty.
  std::int64_t full_begin_, full_end_, first_segment_, last_segment_;
  const MaskWord* mask_ = nullptr;  // of the segment under way; null: every row sees every key
};

// The running (maximum, sum) of a row takes in a segment's; the factors are for the running output and for the segment's.
template <class T>
void merge_state(T& maximum, T& sum, T segment_maximum, T segment_sum, T& old_scale, T& new_scale);

// 2^k for an integer k <= 0, 0 where that is not normal; NaN for NaN.
template <class T>
T power_of_two(T k);

}  // namespace maskattn
