#include "block.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
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
Call<T>::Call(const AttentionInputs& in, int threads, std::int64_t v_head_dim, const Kernels& kernels, const MatrixTable* matrix)
    : in(in),
      kernels(table_of<T>(kernels)),
      matrix(matrix),
      cut(Blocking::of(in, threads)),
      columns(round_up(v_head_dim, this->kernels.lanes)) {}

template <class T>
bool Call<T>::reads_queries_in_place() const {
  return in.q.dtype == kDtype<T> && in.scale >= 0;
}

template <class T>
Scratch<T> Scratch<T>::get(const Call<T>& call) {
  Scratch s{};
  const std::int64_t head_dim = call.in.head_dim, columns = call.columns;
  const bool vectors = !call.matrix;
  const auto bytes_of = [](std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(T); };
  struct Part {
    void* to;  // a pointer to set
    std::size_t bytes;
  };
  const int dim = static_cast<int>(head_dim), width = static_cast<int>(columns);
  const Part parts[] = {
      {&s.mask, kBlockRows * kPanels * sizeof(MaskWord)},
      {&s.queries, bytes_of(call.reads_queries_in_place() ? 0 : kBlockRows * head_dim)},
      {&s.panel, bytes_of(vectors ? kPanel * head_dim : 0)},
      {&s.scores, bytes_of(vectors ? kBlockRows * kSegment : 0)},
      {&s.bias, bytes_of(call.biased() ? kBlockRows * (kSegment + 2) : 0)},  // see bias_by_distance
      {&s.values, bytes_of(vectors ? kSegment * columns : 0)},
      {&s.partial, bytes_of(kBlockRows * columns)},
      {&s.out, bytes_of(kBlockRows * columns)},
      {&s.split_queries, vectors ? 0 : call.matrix->query_bytes(dim)},
      {&s.packed_keys, vectors ? 0 : kPanels * call.matrix->keys_bytes(dim)},
      {&s.packed_values, vectors ? 0 : kPanels * call.matrix->values_bytes(width)},
      {&s.matrix, vectors ? 0 : call.matrix->scratch_bytes(width)},
  };
  std::size_t total = 0;
  const auto place = [&](const Part& part) {
    const std::size_t at = total;
    total += (part.bytes + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  for (const Part& part : parts) place(part);
  char* const base = static_cast<char*>(thread_memory(total));
  total = 0;
  for (const Part& part : parts) {
    char* const at = base + place(part);
    std::memcpy(part.to, &at, sizeof at);
  }
  return s;
}

template <class T>
void State<T>::clear(int rows) {
  std::fill_n(maximum, rows, -std::numeric_limits<T>::infinity());
  std::fill_n(sum, rows, T{0});
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
  if (call.matrix) split_queries();
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

// Where the rows of a segment are, and of the pieces after it. Without pages they are evenly spaced, those that do not exist as
// well: they are prefetched at most.
template <class T>
PieceMemory Block<T>::locate(const Rows<const void>& array, const Factors& factors, std::int64_t segment, SegmentRows& to) const {
  constexpr int count = kSegment / kPiece + kPiecesAhead;
  const Pages& pages = in_.pages;
  const std::ptrdiff_t piece_bytes = kPiece * array.stride[2] * static_cast<std::ptrdiff_t>(size_of(array.dtype));
  // Pieces [first, last) are `row` and what follows it in memory.
  const auto run = [&](int first, int last, std::int64_t sequence_or_page, std::int64_t row) {
    const char* data = static_cast<const char*>(array.at(sequence_or_page, place_.kv_head, row));
    for (int i = first; i < last; ++i) to.piece[i] = data + (i - first) * piece_bytes;
    if (!factors.data) return;
    const float* factor =
        factors.data + sequence_or_page * factors.stride[0] + place_.kv_head * factors.stride[1] + row * factors.stride[2];
    for (int i = first; i < last; ++i) to.scales[i] = factor + (i - first) * kPiece * factors.stride[2];
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
  return {to.piece, array.stride[2], to.scales, factors.stride[2]};
}

template <class T>
bool Block<T>::look(std::int64_t segment) {
  if (!mask_segment(segment)) return false;
  if (call_.biased_by_distance()) bias_by_distance(segment * kSegment);
  return !in_.bias.data || !bias_from_array(segment * kSegment) || find_seen();
}

#define MASKATTN_INSTANTIATE(T) \
  template struct Call<T>;      \
  template struct State<T>;     \
  template struct Scratch<T>;   \
  template class Block<T>;
MASKATTN_INSTANTIATE(float)
MASKATTN_INSTANTIATE(double)

}  // namespace maskattn
