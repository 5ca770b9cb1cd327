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
                                  call.biased() ? kBlockRows * (kSegment + 2) : 0,  // see bias_by_distance
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

// A row's bias by distance is a window of its head's: one array a head serves all queries of the block.
template <class T>
void Block<T>::bias_by_distance(std::int64_t begin) {
  const DistanceBias& bias = in_.distance_bias;
  const auto fill = [&](int row, std::int64_t query, int count, T* to) {
    const double* table = bias.table ? bias.table + head(row) * (2 * bias.reach + 1) : nullptr;
    const std::int64_t first = begin - (in_.q_offset[place_.b] + query);
    kernels_.distance_bias({table, bias.reach, bias.slopes ? bias.slopes[head(row)] : 0, first, count, to});
  };
  if (in_.q_rows || in_.bias.data) {  // queries at any distance from each other, or an array to be added to each row
    for (int r = 0; r < place_.rows; ++r) {
      fill(r, row_of(r), kSegment, scratch_.bias + r * kSegment);
      bias_[r] = scratch_.bias + r * kSegment;
    }
    return;
  }
  const std::int64_t last = query(place_.rows - 1);
  const int heads = static_cast<int>(std::min<std::int64_t>(call_.cut.group, place_.rows));
  const int width = kSegment + static_cast<int>(last - query(0));
  for (int r = 0; r < heads; ++r) fill(r, last, width, scratch_.bias + r * width);
  for (int r = 0; r < place_.rows; ++r) bias_[r] = scratch_.bias + r % heads * width + (last - query(r));
}

// A bias of -inf hides its key as the mask does. Whether there is one.
template <class T>
bool Block<T>::bias_from_array(std::int64_t begin) {
  const Rows<const void>& bias = in_.bias;
  const int count = static_cast<int>(std::min<std::int64_t>(kSegment, in_.kv_len - begin));
  const bool add = call_.biased_by_distance();
  const bool in_place = bias.dtype == kDtype<T> && in_.bias_key_stride == 1 && count == kSegment && !add;
  const auto read = kernels_.read_bias[static_cast<int>(bias.dtype)];
  MaskWord hidden[kPanels];
  bool hides = false, any_hides = false;
  const void* before = nullptr;
  for (int r = 0; r < place_.rows; ++r) {
    const void* from = bias.offset(place_.b * bias.stride[0] + head(r) * bias.stride[1] + row_of(r) * bias.stride[2] +
                                   begin * in_.bias_key_stride);
    if (from == before && !add) {  // heads or queries share it
      bias_[r] = bias_[r - 1];
    } else {
      T* to = in_place ? nullptr : scratch_.bias + r * kSegment;
      hides = read({from, in_.bias_key_stride, count, seen_, to, add, hidden});
      bias_[r] = in_place ? static_cast<const T*>(from) : to;
    }
    before = from;
    if (!hides) continue;
    any_hides = true;
    if (!mask_) {
      std::fill_n(scratch_.mask, place_.rows * kPanels, ~MaskWord{0});
      mask_ = scratch_.mask;
    }
    for (int p = 0; p < kPanels; ++p) scratch_.mask[r * kPanels + p] &= ~hidden[p];
  }
  return any_hides;
}

// The 64 keys from `first_key` on as runs that are evenly spaced in memory: emit(where key 0 of the panel would be, the keys of
// the run that are seen). Without pages that is one run.
template <class T>
template <class Emit>
void Block<T>::for_each_run(const Rows<const void>& array, const Factors& factors, std::int64_t first_key, MaskWord seen,
                            const Emit& emit) const {
  const auto run = [&](std::int64_t sequence_or_page, std::int64_t row, MaskWord keys) {
    const float* factor = factors.data;
    if (factor) factor += sequence_or_page * factors.stride[0] + place_.kv_head * factors.stride[1] + row * factors.stride[2];
    emit(PanelMemory{array.at(sequence_or_page, place_.kv_head, row), array.stride[2], factor, factors.stride[2]}, keys);
  };
  const Pages& pages = in_.pages;
  if (!pages.table) return run(place_.b, first_key, seen);
  for (std::int64_t key = 0; key < kPanel;) {
    const std::int64_t position = first_key + key, slot = position % pages.size;
    const std::int64_t next = std::min<std::int64_t>(kPanel, key + pages.size - slot);
    const MaskWord mine = seen & word_of(key, next);
    if (mine) {
      const std::int64_t entry = place_.b * pages.per_sequence + position / pages.size % pages.per_sequence;
      run(pages.table[entry], slot - key, mine);
    }
    key = next;
  }
}

template <class T>
bool Block<T>::score(std::int64_t segment) {
  if (!mask_segment(segment)) return false;
  if (call_.biased_by_distance()) bias_by_distance(segment * kSegment);
  if (in_.bias.data && bias_from_array(segment * kSegment) && !find_seen()) return false;
  const int head_dim = static_cast<int>(in_.head_dim);
  const auto pack = kernels_.pack_keys[static_cast<int>(in_.k.dtype)];
  for (int p = 0; p < kPanels; ++p) {
    if (!seen_[p]) continue;
    for_each_run(in_.k, in_.k_factors, segment * kSegment + p * kPanel, seen_[p],
                 [&](const PanelMemory& keys, MaskWord mine) { pack(keys, mine, head_dim, scratch_.panel); });
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
  args.bias = call_.biased() ? bias_ : nullptr;
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
  ValuesArgs<T> args{scratch_.scores, mask_, place_.rows, {}, v.stride[2], columns, old_scale, new_scale, out, scratch_.partial};
  // Values are read where they are if they are whole vectors of T, unless several groups of rows will read them and they are
  // apart: keys a power of two apart evict each other from the first-level cache.
  const bool apart = place_.rows > kRowGroup && v.stride[2] != columns;
  const bool in_place = v.dtype == kDtype<T> && dim == columns && !apart && in_.pages.size % kPanel == 0;
  if (!in_place) args.v_stride = columns;
  const auto read = kernels_.read_values[static_cast<int>(v.dtype)];
  for (int p = 0; p < kPanels; ++p) {
    if (!seen_[p]) continue;
    T* to = scratch_.values + p * kPanel * columns;
    args.v[p] = to;
    for_each_run(v, in_.v_factors, segment * kSegment + p * kPanel, seen_[p], [&](const PanelMemory& rows, MaskWord mine) {
      if (in_place)
        args.v[p] = static_cast<const T*>(rows.data);
      else
        read(rows, mine, dim, columns, to);
    });
  }
  kernels_.values(args);
}

#define MASKATTN_INSTANTIATE(T) \
  template struct Call<T>;      \
  template struct Scratch<T>;   \
  template class Block<T>;
MASKATTN_INSTANTIATE(float)
MASKATTN_INSTANTIATE(double)

}  // namespace maskattn
