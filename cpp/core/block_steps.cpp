// The steps of a block over one segment: scores, softmax, values, on vectors or on a matrix unit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "block.hpp"
#include "state.hpp"

namespace maskattn {

template <class T>
bool Block<T>::score(std::int64_t segment) {
  if (!look(segment)) return false;
  const int head_dim = static_cast<int>(in_.head_dim);
  const auto pack = kernels_.pack_keys[static_cast<int>(in_.k.dtype)];
  const auto direct = place_.rows <= kFewRows ? kernels_.direct_scores[static_cast<int>(in_.k.dtype)] : nullptr;
  const PieceMemory keys = locate(in_.k, in_.k_factors, segment, rows_);
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
CapArgs<T> Block<T>::cap_args() const {
  const double factor = 2 * kLog2E * std::abs(in_.scale) / in_.softcap;
  const T high = static_cast<T>(factor);
  return {
      scratch_.scores, mask_, place_.rows, high, static_cast<T>(factor - static_cast<double>(high)), static_cast<T>(in_.softcap)};
}

template <class T>
SoftmaxArgs<T> Block<T>::softmax_args() const {
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
  return args;
}

template <class T>
void Block<T>::cap() {
  kernels_.cap(cap_args());
}

template <class T>
void Block<T>::softmax(T* maximum, T* sum) {
  if (in_.softcap != 0) cap();
  SoftmaxArgs<T> args = softmax_args();
  args.maximum = maximum;
  args.sum = sum;
  kernels_.softmax(args);
}

template <class T>
void Block<T>::attend(std::int64_t segment, State<T>& state, T* out) {
  if (call_.matrix) return attend_with_matrix(segment, state, out);
  if (!score(segment)) return;
  T maximum[kBlockRows], sum[kBlockRows], old_scale[kBlockRows], new_scale[kBlockRows];
  softmax(maximum, sum);
  for (int r = 0; r < place_.rows; ++r)
    merge_state(state.maximum[r], state.sum[r], maximum[r], sum[r], old_scale[r], new_scale[r]);
  values(segment, old_scale, new_scale, out);
}

template <class T>
void Block<T>::values(std::int64_t segment, const T* old_scale, const T* new_scale, T* out) {
  const Rows<const void>& v = in_.v;
  const int columns = static_cast<int>(call_.columns), dim = static_cast<int>(in_.v_head_dim);
  const PieceMemory memory = locate(v, in_.v_factors, segment, rows_);
  ValuesArgs<T> args{scratch_.scores, mask_, place_.rows, memory, columns, old_scale, new_scale, out, scratch_.partial};
  // Values are read where they are if they are whole vectors, unless many rows will read them and they must be converted or are
  // apart: keys a power of two apart evict each other from the first-level cache.
  const bool many = place_.rows > kFewRows;
  auto multiply = kernels_.values[static_cast<int>(v.dtype)];
  if (!multiply || dim != columns || (many && (v.dtype != kDtype<T> || v.stride[2] != columns))) {
    multiply = kernels_.values[static_cast<int>(kDtype<T>)];
    const auto read = kernels_.read_values[static_cast<int>(v.dtype)];
    for (int p = 0; p < kPanels; ++p) read(memory.panel(p), seen_[p], dim, columns, scratch_.values + p * kPanel * columns);
    for (int i = 0; i < kSegment / kPiece + kPiecesAhead; ++i) rows_.piece[i] = scratch_.values + i * kPiece * columns;
    args.v.stride = columns;
  }
  multiply(args);
}

template <class T>
void Block<T>::split_queries() {
  if constexpr (std::is_same_v<T, float>)
    for (int r = 0; r < place_.rows; ++r)
      call_.matrix->split_query(queries_[r], r, static_cast<int>(in_.head_dim), scratch_.split_queries);
}

template <class T>
void Block<T>::attend_with_matrix(std::int64_t segment, State<T>& state, T* out) {
  if constexpr (std::is_same_v<T, float>) {
    if (!look(segment)) return;
    const MatrixTable& matrix = *call_.matrix;
    const int head_dim = static_cast<int>(in_.head_dim), columns = static_cast<int>(call_.columns);
    const std::size_t keys_bytes = matrix.keys_bytes(head_dim), values_bytes = matrix.values_bytes(columns);
    const auto pack_keys = matrix.pack_keys[static_cast<int>(in_.k.dtype)];
    const auto pack_values = matrix.pack_values[static_cast<int>(in_.v.dtype)];
    float maximum[kBlockRows], sum[kBlockRows], factor[kBlockRows];
    SegmentArgs args{};
    args.queries = scratch_.split_queries;
    args.head_dim = head_dim;
    args.columns = columns;
    args.softmax = softmax_args();
    args.softmax.maximum = maximum;
    args.softmax.sum = sum;
    if (in_.softcap != 0) args.cap = cap_args();
    args.factor = factor;
    args.partial = scratch_.partial;
    args.scratch = scratch_.matrix;
    for (int p = 0; p < kPanels; ++p) args.values[p] = scratch_.packed_values + p * values_bytes;
    args.seen = seen_;
    SegmentRows value_rows;
    args.key_rows = locate(in_.k, in_.k_factors, segment, rows_);
    args.value_rows = locate(in_.v, in_.v_factors, segment, value_rows);
    const bool direct = matrix.attend_few && place_.rows <= matrix.few_rows && in_.k.dtype == Dtype::bfloat16 &&
                        in_.v.dtype == Dtype::bfloat16 && head_dim % kDepth == 0 && head_dim <= kMostDirect &&
                        in_.v_head_dim == columns;
    if (direct) {
      matrix.attend_few(args);
    } else {
      for (int p = 0; p < kPanels; ++p) {
        if (!seen_[p]) continue;
        char* const keys = scratch_.packed_keys + p * keys_bytes;
        pack_keys(args.key_rows.panel(p), seen_[p], head_dim, keys);
        args.keys[p] = keys;
        if (~seen_[p]) std::memset(args.values[p], 0, values_bytes);
        pack_values(args.value_rows.panel(p), seen_[p], static_cast<int>(in_.v_head_dim), columns, args.values[p]);
      }
      matrix.attend(args);
    }
    for (int r = 0; r < place_.rows; ++r) {
      float old_scale, new_scale;
      merge_state(state.maximum[r], state.sum[r], maximum[r], sum[r], old_scale, new_scale);
      if (new_scale != 0)
        kernels_.merge(out + r * columns, scratch_.partial + r * columns, old_scale, new_scale * factor[r], columns);
    }
  }
}

#define MASKATTN_INSTANTIATE(T)                                \
  template bool Block<T>::score(std::int64_t);                 \
  template void Block<T>::cap();                               \
  template void Block<T>::softmax(T*, T*);                     \
  template void Block<T>::attend(std::int64_t, State<T>&, T*); \
  template void Block<T>::split_queries();
MASKATTN_INSTANTIATE(float)
MASKATTN_INSTANTIATE(double)

}  // namespace maskattn
