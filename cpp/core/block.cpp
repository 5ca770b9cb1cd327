#include "block.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>

#include "dispatch.hpp"
#include "memory.hpp"
#include "state.hpp"

namespace maskattn {
namespace {

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

Blocking Blocking::of(const AttentionInputs& in, int threads) {
  Blocking cut{};
  if (in.kv_heads == 0) return cut;
  cut.group = in.q_heads / in.kv_heads;
  const std::int64_t rows = cut.group * in.q_len;
  // Blocks of equal size, and enough of them to keep every thread busy.
  const std::int64_t pairs = std::max<std::int64_t>(1, in.batch * in.kv_heads);
  const std::int64_t wanted = threads > 1 ? (4 * threads + pairs - 1) / pairs : 1;
  const std::int64_t least = (rows + kBlockRows - 1) / kBlockRows, most = std::max<std::int64_t>(1, rows / 48);
  cut.blocks = std::max<std::int64_t>(1, std::max(least, std::min(wanted, most)));
  cut.block_rows = std::min<std::int64_t>(kBlockRows, round_up((rows + cut.blocks - 1) / cut.blocks, kRowGroup));
  cut.blocks = cut.block_rows ? (rows + cut.block_rows - 1) / cut.block_rows : 0;
  return cut;
}

BlockPlace Blocking::place(const AttentionInputs& in, std::int64_t b, std::int64_t kv_head, std::int64_t block) const {
  const std::int64_t rows = group * (in.q_lengths ? in.q_lengths[b] : in.q_len), first = block * block_rows;
  return {b, kv_head, first, static_cast<int>(std::clamp<std::int64_t>(rows - first, 0, block_rows))};
}

template <class T>
Call<T>::Call(const AttentionInputs& in, int threads, std::int64_t v_head_dim)
    : in(in), kernels(kernel_table<T>()), cut(Blocking::of(in, threads)), columns(round_up(v_head_dim, kernels.lanes)) {}

template <class T>
bool Call<T>::reads_queries_in_place() const {
  return in.q.dtype == kDtype<T> && in.scale >= 0;
}

template <class T>
Scratch<T> Scratch<T>::get(const Call<T>& call) {
  Scratch s;
  const std::int64_t head_dim = call.in.head_dim, columns = call.columns;
  const std::int64_t counts[7] = {call.reads_queries_in_place() ? 0 : kBlockRows * head_dim,
                                  kPanel * head_dim,
                                  kBlockRows * kSegment,
                                  call.biased() ? kBlockRows * kSegment : 0,
                                  kSegment * columns,
                                  kBlockRows * columns,
                                  kBlockRows * columns};
  T** const arrays[7] = {&s.queries, &s.panel, &s.scores, &s.bias, &s.values, &s.partial, &s.out};
  std::size_t total = kBlockRows * kPanels * sizeof(MaskWord), offset[7];
  for (int i = 0; i < 7; ++i) {
    offset[i] = total;
    total += static_cast<std::size_t>(round_up(counts[i] * static_cast<std::int64_t>(sizeof(T)), kAlign));
  }
  char* base = static_cast<char*>(thread_memory(total));
  s.mask = reinterpret_cast<MaskWord*>(base);
  for (int i = 0; i < 7; ++i) *arrays[i] = reinterpret_cast<T*>(base + offset[i]);
  return s;
}

template <class T>
Block<T>::Block(const Call<T>& call, const BlockPlace& place)
    : call_(call), in_(call.in), kernels_(call.kernels), place_(place), scratch_(Scratch<T>::get(call)) {
  whole_ = {0, static_cast<std::int32_t>(in_.kv_lengths ? in_.kv_lengths[place.b] : in_.kv_len)};
  std::int64_t begin = std::numeric_limits<std::int32_t>::max(), end = 0;
  full_begin_ = 0;
  full_end_ = std::numeric_limits<std::int32_t>::max();
  for (int r = 0; r < place.rows; ++r) {
    PlanRow& row = plan_[r];
    row = in_.mask ? in_.mask->row(place.b, head(r), row_of(r)) : PlanRow{&whole_, whole_.end > 0 ? 1 : 0, nullptr};
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
  read_queries();
}

// Scores take the scale's size; its sign goes to the queries, so that the largest score has the largest weight.
template <class T>
void Block<T>::read_queries() {
  const bool in_place = call_.reads_queries_in_place();
  for (int r = 0; r < place_.rows; ++r) {
    const void* from = in_.q.at(place_.b, head(r), row_of(r));
    if (in_place) {
      queries_[r] = static_cast<const T*>(from);
      continue;
    }
    T* to = scratch_.queries + r * in_.head_dim;
    kernels_.read_row[static_cast<int>(in_.q.dtype)](from, static_cast<int>(in_.head_dim), to);
    if (in_.scale < 0) std::transform(to, to + in_.head_dim, to, std::negate<T>());
    queries_[r] = to;
  }
}

// The keys of each panel that some row sees; whether there are any.
template <class T>
bool Block<T>::find_seen() {
  std::fill_n(seen_, kPanels, mask_ ? 0 : ~MaskWord{0});
  if (mask_)
    for (int r = 0; r < place_.rows; ++r)
      for (int p = 0; p < kPanels; ++p) seen_[p] |= mask_[r * kPanels + p];
  return std::any_of(seen_, seen_ + kPanels, [](MaskWord word) { return word != 0; });
}

template <class T>
bool Block<T>::mask_segment(std::int64_t segment) {
  const std::int64_t begin = segment * kSegment;
  mask_ = nullptr;
  if (full_begin_ <= begin && begin + kSegment <= full_end_) return find_seen();
  mask_ = scratch_.mask;
  MaskWord all = ~MaskWord{0};
  for (int r = 0; r < place_.rows; ++r) {
    MaskWord* words = scratch_.mask + r * kPanels;
    if (r > 0 && plan_[r] == plan_[r - 1])  // neighbours that agree share their storage
      std::copy_n(words - kPanels, kPanels, words);
    else
      mask_words(plan_[r], begin, words);
    for (int p = 0; p < kPanels; ++p) all &= words[p];
  }
  if (all == ~MaskWord{0}) mask_ = nullptr;
  return find_seen();
}

// Fills in the segment's bias; a bias of -inf hides its key as the mask does. Whether there is one.
template <class T>
bool Block<T>::add_bias(std::int64_t segment) {
  constexpr T hidden = -std::numeric_limits<T>::infinity();
  const std::int64_t begin = segment * kSegment;
  const int count = static_cast<int>(std::min<std::int64_t>(kSegment, in_.kv_len - begin));
  const auto read = kernels_.read_row[static_cast<int>(in_.bias.dtype)];
  bool any_hides = false;
  for (int r = 0; r < place_.rows; ++r) {
    T* to = scratch_.bias + r * kSegment;
    std::fill_n(to, kSegment, T{0});
    if (in_.distance_bias.table || in_.distance_bias.slopes) add_distance_bias(begin, r, to);
    if (!in_.bias.data) continue;
    const Rows<const void>& bias = in_.bias;
    const std::ptrdiff_t first =
        place_.b * bias.stride[0] + head(r) * bias.stride[1] + row_of(r) * bias.stride[2] + begin * in_.bias_key_stride;
    T row[kSegment];
    if (in_.bias_key_stride == 1)
      read(bias.offset(first), count, row);
    else
      for (int key = 0; key < count; ++key) read(bias.offset(first + key * in_.bias_key_stride), 1, row + key);
    bool hides = false;
    for (int key = 0; key < count; ++key) {
      hides |= row[key] == hidden;
      to[key] += row[key];
    }
    if (!hides) continue;
    any_hides = true;
    if (!mask_) {
      std::fill_n(scratch_.mask, place_.rows * kPanels, ~MaskWord{0});
      mask_ = scratch_.mask;
    }
    for (int key = 0; key < count; ++key)
      if (row[key] == hidden) {
        to[key] = 0;
        scratch_.mask[r * kPanels + key / kPanel] &= ~(MaskWord{1} << (key % kPanel));
      }
  }
  return any_hides;
}

template <class T>
void Block<T>::add_distance_bias(std::int64_t begin, int row, T* to) const {
  const DistanceBias& bias = in_.distance_bias;
  const std::int64_t h = head(row), first = begin - (in_.q_offset[place_.b] + row_of(row)), width = 2 * bias.reach + 1;
  if (bias.table)
    for (int key = 0; key < kSegment; ++key)
      to[key] += static_cast<T>(bias.table[h * width + std::clamp(first + key, -bias.reach, bias.reach) + bias.reach]);
  if (bias.slopes)
    for (int key = 0; key < kSegment; ++key)
      to[key] -= static_cast<T>(bias.slopes[h] * static_cast<double>(std::abs(first + key)));
}

// Where the rows of a segment are, and of the pieces after it. Without pages they are evenly spaced, those that do not exist as
// well: they are prefetched at most.
template <class T>
PieceMemory Block<T>::locate(const Rows<const void>& array, const Factors& factors, std::int64_t segment) {
  constexpr int count = kSegment / kPiece + kPiecesAhead;
  const Pages& pages = in_.pages;
  const std::ptrdiff_t piece_bytes = kPiece * array.stride[2] * static_cast<std::ptrdiff_t>(size_of(array.dtype));
  // Pieces [first, last) are `row` and what follows it in memory.
  const auto run = [&](int first, int last, std::int64_t sequence_or_page, std::int64_t row) {
    const char* data = static_cast<const char*>(array.at(sequence_or_page, place_.kv_head, row));
    for (int i = first; i < last; ++i) pieces_[i] = data + (i - first) * piece_bytes;
    if (!factors.data) return;
    const float* factor =
        factors.data + sequence_or_page * factors.stride[0] + place_.kv_head * factors.stride[1] + row * factors.stride[2];
    for (int i = first; i < last; ++i) scales_[i] = factor + (i - first) * kPiece * factors.stride[2];
  };
  const std::int64_t begin = segment * kSegment;
  if (!pages.table) {
    run(0, count, place_.b, begin);
  } else {
    std::int64_t page = begin / pages.size % pages.per_sequence, row = begin % pages.size;
    for (int first = 0, last; first < count; first = last) {
      last = static_cast<int>(std::min<std::int64_t>(count, first + (pages.size - row) / kPiece));
      run(first, last, pages.table[place_.b * pages.per_sequence + page], row);
      page = page + 1 == pages.per_sequence ? 0 : page + 1;
      row = 0;
    }
  }
  return {pieces_, array.stride[2], scales_, factors.stride[2]};
}

template <class T>
bool Block<T>::score(std::int64_t segment) {
  if (!mask_segment(segment)) return false;
  if (call_.biased() && add_bias(segment) && !find_seen()) return false;
  const int head_dim = static_cast<int>(in_.head_dim);
  const auto pack = kernels_.pack_keys[static_cast<int>(in_.k.dtype)];
  const auto direct = place_.rows <= kFewRows ? kernels_.direct_scores[static_cast<int>(in_.k.dtype)] : nullptr;
  const PieceMemory keys = locate(in_.k, in_.k_factors, segment);
  for (int p = 0; p < kPanels; ++p) {
    if (!seen_[p]) continue;
    if (direct) {
      direct(queries_, place_.rows, keys.panel(p), seen_[p], head_dim, scratch_.panel, scratch_.scores + p * kPanel);
      continue;
    }
    pack(keys.panel(p), seen_[p], head_dim, scratch_.panel);
    kernels_.scores(queries_, place_.rows, scratch_.panel, head_dim, mask_ ? mask_ + p : nullptr, scratch_.scores + p * kPanel);
  }
  return true;
}

template <class T>
void Block<T>::cap() {
  const double factor = 2 * kLog2E * std::abs(in_.scale) / in_.softcap;
  const T high = static_cast<T>(factor);
  kernels_.cap({scratch_.scores, mask_, place_.rows, high, static_cast<T>(factor - static_cast<double>(high)),
                static_cast<T>(in_.softcap)});
}

template <class T>
void Block<T>::softmax(T* maximum, T* sum) {
  if (in_.softcap != 0) cap();
  const double scale = in_.softcap != 0 ? 1 : std::abs(in_.scale), factor = call_.biased() ? kLog2E : scale * kLog2E;
  SoftmaxArgs<T> args;
  args.scores = scratch_.scores;
  args.mask = mask_;
  args.bias = call_.biased() ? scratch_.bias : nullptr;
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
void Block<T>::values(std::int64_t segment, const T* old_scale, const T* new_scale, T* out) {
  const Rows<const void>& v = in_.v;
  const int columns = static_cast<int>(call_.columns), dim = static_cast<int>(in_.v_head_dim);
  const PieceMemory memory = locate(v, in_.v_factors, segment);
  ValuesArgs<T> args{scratch_.scores, mask_, place_.rows, memory, columns, old_scale, new_scale, out, scratch_.partial};
  // Values are read where they are if they are whole vectors, unless many rows will read them and they must be converted or are
  // apart: keys a power of two apart evict each other from the first-level cache.
  const bool many = place_.rows > kFewRows;
  auto multiply = kernels_.values[static_cast<int>(v.dtype)];
  if (!multiply || dim != columns || (many && (v.dtype != kDtype<T> || v.stride[2] != columns))) {
    multiply = kernels_.values[static_cast<int>(kDtype<T>)];
    const auto read = kernels_.read_values[static_cast<int>(v.dtype)];
    for (int p = 0; p < kPanels; ++p) read(memory.panel(p), seen_[p], dim, columns, scratch_.values + p * kPanel * columns);
    for (int i = 0; i < kSegment / kPiece + kPiecesAhead; ++i) pieces_[i] = scratch_.values + i * kPiece * columns;
    args.v.stride = columns;
  }
  multiply(args);
}

#define MASKATTN_INSTANTIATE(T) \
  template struct Call<T>;      \
  template struct Scratch<T>;   \
  template class Block<T>;
MASKATTN_INSTANTIATE(float)
MASKATTN_INSTANTIATE(double)

}  // namespace maskattn
