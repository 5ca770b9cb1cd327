#include "block.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

#include "memory.hpp"

namespace maskattn {
namespace {

constexpr double kLog2E = 1.4426950408889634074;

std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }

// Bits [begin, end) of a word, where they lie inside it.
MaskWord word_of(std::int64_t begin, std::int64_t end) {
  begin = std::max<std::int64_t>(begin, 0);
  end = std::min<std::int64_t>(end, 64);
  return begin < end ? ~MaskWord{0} >> (64 - (end - begin)) << begin : 0;
}

void mask_words(const PlanRow& row, std::int64_t begin, MaskWord* words) {
  std::fill_n(words, kPanels, 0);
  const Span* last = row.spans + row.count;
  const Span* span = row.count <= 4 ? row.spans : std::partition_point(row.spans, last, [&](Span s) { return s.end <= begin; });
  for (; span < last && span->begin < begin + kSegment; ++span)
    for (int p = 0; p < kPanels; ++p) words[p] |= word_of(span->begin - begin - p * kPanel, span->end - begin - p * kPanel);
  if (!row.bits) return;
  for (int p = 0; p < kPanels; ++p)
    if (words[p]) words[p] &= row.bits[begin / kPanel + p];
}

}  // namespace

template <class T>
Blocking Blocking::of(const AttentionInputs<T>& in) {
  Blocking cut{};
  if (in.kv_heads == 0) return cut;
  cut.group = in.q_heads / in.kv_heads;
  const std::int64_t rows = cut.group * in.q_len;
  // Blocks of equal size, and enough of them to keep every thread busy.
  const std::int64_t pairs = std::max<std::int64_t>(1, in.batch * in.kv_heads);
  const std::int64_t wanted = in.threads > 1 ? (4 * in.threads + pairs - 1) / pairs : 1;
  const std::int64_t least = (rows + kBlockRows - 1) / kBlockRows, most = std::max<std::int64_t>(1, rows / 48);
  cut.blocks = std::max<std::int64_t>(1, std::max(least, std::min(wanted, most)));
  cut.block_rows = std::min<std::int64_t>(kBlockRows, round_up((rows + cut.blocks - 1) / cut.blocks, kRowGroup));
  cut.blocks = cut.block_rows ? (rows + cut.block_rows - 1) / cut.block_rows : 0;
  return cut;
}

template <class T>
BlockPlace Blocking::place(const AttentionInputs<T>& in, std::int64_t b, std::int64_t kv_head, std::int64_t block) const {
  const std::int64_t rows = group * (in.q_lengths ? in.q_lengths[b] : in.q_len), first = block * block_rows;
  return {b, kv_head, first, static_cast<int>(std::clamp<std::int64_t>(rows - first, 0, block_rows))};
}

template <class T>
Scratch<T> Scratch<T>::get(std::int64_t head_dim, std::int64_t columns, bool with_bias, bool negative_scale) {
  Scratch s;
  std::size_t sizes[8] = {
      negative_scale ? static_cast<std::size_t>(kBlockRows * head_dim) * sizeof(T) : 0,
      static_cast<std::size_t>(kPanel * head_dim) * sizeof(T),
      kBlockRows * kSegment * sizeof(T),
      with_bias ? kBlockRows * kSegment * sizeof(T) : 0,
      static_cast<std::size_t>(kSegment * columns) * sizeof(T),
      static_cast<std::size_t>(kBlockRows * columns) * sizeof(T),
      static_cast<std::size_t>(kBlockRows * columns) * sizeof(T),
      kBlockRows * kPanels * sizeof(MaskWord),
  };
  std::size_t total = 0, offset[8];
  for (int i = 0; i < 8; ++i) {
    offset[i] = total;
    total += static_cast<std::size_t>(round_up(static_cast<std::int64_t>(sizes[i]), kAlign));
  }
  char* base = static_cast<char*>(thread_memory(total));
  T** const arrays[7] = {&s.negated, &s.panel, &s.scores, &s.bias, &s.values, &s.partial, &s.out};
  for (int i = 0; i < 7; ++i) *arrays[i] = reinterpret_cast<T*>(base + offset[i]);
  s.mask = reinterpret_cast<MaskWord*>(base + offset[7]);
  return s;
}

template <class T>
Block<T>::Block(const AttentionInputs<T>& in, const KernelTable<T>& kernels, const Blocking& blocking, const BlockPlace& place,
                std::int64_t columns)
    : in_(in),
      kernels_(kernels),
      place_(place),
      group_(blocking.group),
      columns_(columns),
      scratch_(Scratch<T>::get(in.head_dim, columns, in.bias.data != nullptr, in.scale < 0)) {
  whole_ = {0, static_cast<std::int32_t>(in.kv_lengths ? in.kv_lengths[place.b] : in.kv_len)};
  std::int64_t begin = std::numeric_limits<std::int32_t>::max(), end = 0;
  full_begin_ = 0;
  full_end_ = std::numeric_limits<std::int32_t>::max();
  for (int r = 0; r < place.rows; ++r) {
    queries_[r] = in.q.at(place.b, head(r), query(r));
    PlanRow& row = plan_[r];
    row = in.mask ? in.mask->row(place.b, head(r), query(r)) : PlanRow{&whole_, whole_.end > 0 ? 1 : 0, nullptr};
    if (row.count > 0) {
      begin = std::min<std::int64_t>(begin, row.spans[0].begin);
      end = std::max<std::int64_t>(end, row.spans[row.count - 1].end);
    }
    const bool one = row.count == 1 && !row.bits;
    full_begin_ = std::max<std::int64_t>(full_begin_, one ? row.spans[0].begin : full_end_);
    full_end_ = std::min<std::int64_t>(full_end_, one ? row.spans[0].end : 0);
  }
  first_segment_ = begin / kSegment;
  last_segment_ = std::max(first_segment_, (end + kSegment - 1) / kSegment);
  if (in.scale < 0) negate_queries();
}

// Scores take the scale's size; its sign goes to the queries, so that the largest score has the largest weight.
template <class T>
void Block<T>::negate_queries() {
  for (int r = 0; r < place_.rows; ++r) {
    T* to = scratch_.negated + r * in_.head_dim;
    std::transform(queries_[r], queries_[r] + in_.head_dim, to, std::negate<T>());
    queries_[r] = to;
  }
}

template <class T>
bool Block<T>::mask_segment(std::int64_t segment) {
  const std::int64_t begin = segment * kSegment;
  mask_ = nullptr;
  if (full_begin_ <= begin && begin + kSegment <= full_end_) return true;
  mask_ = scratch_.mask;
  MaskWord any = 0, all = ~MaskWord{0};
  for (int r = 0; r < place_.rows; ++r) {
    MaskWord* words = scratch_.mask + r * kPanels;
    mask_words(plan_[r], begin, words);
    for (int p = 0; p < kPanels; ++p) {
      any |= words[p];
      all &= words[p];
    }
  }
  if (all == ~MaskWord{0}) mask_ = nullptr;
  return any != 0;
}

// Copies the segment's bias; a bias of -inf hides its key as the mask does.
template <class T>
void Block<T>::add_bias(std::int64_t segment) {
  constexpr T hidden = -std::numeric_limits<T>::infinity();
  const std::int64_t begin = segment * kSegment, count = std::min<std::int64_t>(kSegment, in_.kv_len - begin);
  for (int r = 0; r < place_.rows; ++r) {
    const T* from = in_.bias.at(place_.b, head(r), query(r)) + begin * in_.bias_key_stride;
    T* to = scratch_.bias + r * kSegment;
    if (in_.bias_key_stride == 1)
      std::copy_n(from, count, to);
    else
      for (std::int64_t key = 0; key < count; ++key) to[key] = from[key * in_.bias_key_stride];
    std::fill(to + count, to + kSegment, T{0});
    bool hides = false;
    for (std::int64_t key = 0; key < count; ++key) hides |= to[key] == hidden;
    if (!hides) continue;
    if (!mask_) {
      std::fill_n(scratch_.mask, place_.rows * kPanels, ~MaskWord{0});
      mask_ = scratch_.mask;
    }
    for (std::int64_t key = 0; key < count; ++key)
      if (to[key] == hidden) {
        to[key] = 0;
        scratch_.mask[r * kPanels + key / kPanel] &= ~(MaskWord{1} << (key % kPanel));
      }
  }
}

template <class T>
MaskWord Block<T>::any_row(int panel) const {
  if (!mask_) return ~MaskWord{0};
  MaskWord any = 0;
  for (int r = 0; r < place_.rows; ++r) any |= mask_[r * kPanels + panel];
  return any;
}

template <class T>
bool Block<T>::score(std::int64_t segment) {
  if (!mask_segment(segment)) return false;
  if (in_.bias.data) add_bias(segment);
  bool any = false;
  const std::ptrdiff_t stride = in_.k.stride[2];
  for (int p = 0; p < kPanels; ++p) {
    const MaskWord seen = any_row(p);
    if (!seen) continue;
    any = true;
    const T* keys = in_.k.at(place_.b, place_.kv_head, segment * kSegment + p * kPanel);
    const int head_dim = static_cast<int>(in_.head_dim);
    kernels_.pack_keys(keys, stride, seen, head_dim, scratch_.panel);
    kernels_.scores(queries_, place_.rows, scratch_.panel, head_dim, mask_ ? mask_ + p : nullptr, scratch_.scores + p * kPanel);
  }
  return any;
}

template <class T>
void Block<T>::softmax(T* maximum, T* sum) {
  const double scale = std::abs(in_.scale), factor = in_.bias.data ? kLog2E : scale * kLog2E;
  SoftmaxArgs<T> args;
  args.scores = scratch_.scores;
  args.mask = mask_;
  args.bias = in_.bias.data ? scratch_.bias : nullptr;
  args.rows = place_.rows;
  args.scale_hi = static_cast<T>(scale);
  args.scale_lo = static_cast<T>(scale - static_cast<double>(args.scale_hi));
  args.log2_hi = static_cast<T>(factor);
  args.log2_lo = static_cast<T>(factor - static_cast<double>(args.log2_hi));
  args.maximum = maximum;
  args.sum = sum;
  kernels_.softmax(args);
}

template <class T>
void Block<T>::values(std::int64_t segment, const T* v, std::ptrdiff_t v_stride, int v_head_dim, const T* old_scale,
                      const T* new_scale, T* out) {
  v += segment * kSegment * v_stride;
  // Rows of values that are not whole vectors are padded; and where several groups of rows will read them, they are laid side
  // by side, because keys a power of two apart evict each other from the first-level cache.
  const bool together = place_.rows > kRowGroup && v_stride != columns_;
  if (v_head_dim != columns_ || together) {
    for (int p = 0; p < kPanels; ++p)
      for (MaskWord left = any_row(p); left; left &= left - 1) {
        const int key = p * kPanel + __builtin_ctzll(left);
        T* to = scratch_.values + key * columns_;
        std::memcpy(to, v + key * v_stride, sizeof(T) * static_cast<std::size_t>(v_head_dim));
        std::fill(to + v_head_dim, to + columns_, T{0});
      }
    v = scratch_.values;
    v_stride = columns_;
  }
  kernels_.values({scratch_.scores, mask_, place_.rows, v, v_stride, static_cast<int>(columns_), old_scale, new_scale, out,
                   scratch_.partial});
}

template <class T>
T power_of_two(T k) {
  if (k == 0 || k != k) return k == 0 ? T{1} : k;
  return k < std::numeric_limits<T>::min_exponent - 1 ? T{0} : std::ldexp(T{1}, static_cast<int>(k));
}

template <class T>
void merge_state(T& maximum, T& sum, T segment_maximum, T segment_sum, T& old_scale, T& new_scale) {
  if (segment_maximum == -std::numeric_limits<T>::infinity()) {
    old_scale = 1;
    new_scale = 0;
    return;
  }
  const T merged = std::max(maximum, segment_maximum);
  old_scale = power_of_two(maximum - merged);
  new_scale = power_of_two(segment_maximum - merged);
  sum = sum * old_scale + segment_sum * new_scale;
  maximum = merged;
}

#define MASKATTN_INSTANTIATE(T)                                                                                      \
  template Blocking Blocking::of<T>(const AttentionInputs<T>&);                                                      \
  template BlockPlace Blocking::place<T>(const AttentionInputs<T>&, std::int64_t, std::int64_t, std::int64_t) const; \
  template struct Scratch<T>;                                                                                        \
  template class Block<T>;                                                                                           \
  template T power_of_two(T);                                                                                        \
  template void merge_state(T&, T&, T, T, T&, T&);
MASKATTN_INSTANTIATE(float)
MASKATTN_INSTANTIATE(double)

}  // namespace maskattn
