// Elements as sums of bfloat16 numbers, and the layouts in which matrix units read them: pairs of neighbours along the axis that
// is summed over, as a 32-bit word each.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

MASKATTN_INLINE F32 from_bfloat(U16 x) { return bits_as<F32>(__builtin_convertvector(x, I32) << 16); }
MASKATTN_INLINE U16 upper_half(F32 x) { return __builtin_convertvector(bits_as<I32>(x) >> 16, U16); }

// Three terms are cut off, which is exact: 8 + 8 + 8 digits. One or two are rounded; of two the first too, or the second would
// have the sign of the first, and products of second terms, which are left out, would not average out. Infinity and NaN are one
// term.
template <int Terms>
MASKATTN_INLINE void split(F32 x, U16 (&term)[Terms]) {
  if constexpr (Terms == 1) {
    term[0] = float_to_bfloat(x);
  } else {
    const auto finite = x - x == 0;
    const F32 number = bits_as<F32>(bits_as<I32>(x) & (finite ? I32{} - 1 : I32{}));
    if constexpr (Terms == 3) {
      term[0] = upper_half(x);
      F32 rest = number - bits_as<F32>(bits_as<I32>(number) & -0x10000);
      term[1] = upper_half(rest);
      term[2] = upper_half(rest - from_bfloat(term[1]));
    } else {
      constexpr float kLargest = 0x1.fep127f;  // of bfloat16: nothing finite becomes infinite
      const U16 first = float_to_bfloat(vmin(splat(kLargest), vmax(splat(-kLargest), number)));
      term[0] = __builtin_convertvector(finite ? __builtin_convertvector(first, I32) : bits_as<I32>(x) >> 16, U16);
      term[1] = float_to_bfloat(number - from_bfloat(first));
    }
  }
}

// A query has `padded` coordinates, zeros behind its own; a block has its terms one behind the other.
constexpr int padded(int dim) { return (dim + kDepth - 1) / kDepth * kDepth; }

template <int Terms>
std::size_t query_bytes(int head_dim) {
  return sizeof(std::uint16_t) * Terms * kBlockRows * static_cast<std::size_t>(padded(head_dim));
}

template <int Terms>
void split_query(const float* from, int row, int head_dim, void* queries) {
  constexpr int n = kLanes<float>;
  const int depth = padded(head_dim);
  std::uint16_t* to = static_cast<std::uint16_t*>(queries) + row * depth;
  for (int d = 0; d < depth; d += n) {
    const int left = head_dim - d < n ? head_dim - d : n;
    U16 term[Terms];
    split<Terms>(left == n ? load(from + d) : left > 0 ? load_first(from + d, left) : F32{}, term);
    MASKATTN_UNROLLED(i, Terms) std::memcpy(to + i * kBlockRows * depth + d, &term[i], sizeof term[i]);
  }
}

// Keys: [term][padded / 2][kPanel] pairs of coordinates.
template <int Terms>
std::size_t keys_bytes(int head_dim) {
  return sizeof(std::uint16_t) * Terms * kPanel * static_cast<std::size_t>(padded(head_dim));
}

template <class S>
inline constexpr bool kIsBfloat = false;
template <>
inline constexpr bool kIsBfloat<Bfloat> = true;

template <int Terms, class S>
MASKATTN_INLINE void split_at(const S* p, const PieceMemory& m, int key, int count, U16 (&term)[Terms]) {
  if constexpr (Terms == 1 && kIsBfloat<S>)
    term[0] = load_bits<U16>(p, count);
  else
    split<Terms>(load_scaled<float>(p, m, key, count), term);
}

template <int Terms, class S>
void pack_pairs_of_keys(const PieceMemory& m, MaskWord seen, int head_dim, void* panel) {
  constexpr int n = kLanes<float>;
  static_assert(2 * n == kDepth && n == kPiece);
  constexpr MaskWord all = ~MaskWord{0} >> (64 - n);
  const int depth = padded(head_dim);
  float* const to = static_cast<float*>(panel);
  for (int key = 0; key < kPanel; key += n) {
    const MaskWord mine = seen >> key & all;
    if (mine == 0) continue;
    const S* first = row_at<S>(m, key);
    Prefetcher later = prefetch_later<S>(m, key, head_dim);
    for (int d = 0; d < depth; d += kDepth) {
      later.lines(n * kDepth * static_cast<int>(sizeof(S)) / 64);
      F32 x[n];
      if constexpr (Terms == 1 && kIsBfloat<S>) {
        if (mine == all && head_dim - d >= kDepth && m.stride % 2 == 0) {
          load_transposed(reinterpret_cast<const float*>(first + d), m.stride / 2, x);
          MASKATTN_UNROLLED(i, n) store(to + (d / 2 + i) * kPanel + key, x[i]);
          continue;
        }
      }
      std::uint16_t square[Terms][n][kDepth] = {};
      for (int i = 0; i < n; ++i)
        for (int half = 0; half < kDepth && (mine >> i & 1); half += n) {
          const int left = head_dim - d - half;
          if (left <= 0) break;
          U16 term[Terms];
          const S* from = first + i * m.stride + d + half;
          if (left >= n)
            split_at<Terms>(from, m, key + i, n, term);
          else
            split_at<Terms>(from, m, key + i, left, term);
          MASKATTN_UNROLLED(p, Terms) std::memcpy(square[p][i] + half, &term[p], sizeof term[p]);
        }
      for (int p = 0; p < Terms; ++p) {
        load_transposed(reinterpret_cast<const float*>(square[p]), n, x);
        MASKATTN_UNROLLED(i, n) store(to + ((p * depth + d) / 2 + i) * kPanel + key, x[i]);
      }
    }
  }
}

// Weights of kMatrixRows rows, in elements. A single term takes the place of its scores, half as wide, so that both fit into the
// first-level cache; several have a place of their own.
template <int Terms>
struct WeightsLayout {
  static constexpr int row = Terms == 1 ? 2 * kSegment : kSegment, term = kMatrixRows * row;
};

// Values: [term][kPanel / 2][columns] pairs of keys.
template <int Terms>
std::size_t values_bytes(int columns) {
  return sizeof(std::uint16_t) * Terms * kPanel * static_cast<std::size_t>(columns);
}

template <int Terms, class S>
void pack_pairs_of_values(const PieceMemory& m, MaskWord seen, int dim, int columns, void* panel) {
  constexpr int n = kLanes<float>;
  std::uint32_t* const to = static_cast<std::uint32_t*>(panel);
  for (int key = 0; key < kPanel; key += 2) {
    const MaskWord mine = seen >> key & 3;
    if (mine == 0) continue;
    const S* first = row_at<S>(m, key);
    Prefetcher later = prefetch_later<S>(m, key, dim);
    later.lines(2 * ((dim * static_cast<int>(sizeof(S)) + 63) / 64));
    for (int c = 0; c < columns; c += n) {
      const int left = dim - c;
      U16 even[Terms] = {}, odd[Terms] = {};
      if (left >= n && mine == 3) {
        split_at<Terms>(first + c, m, key, n, even);
        split_at<Terms>(first + m.stride + c, m, key + 1, n, odd);
      } else if (left > 0) {
        if (mine & 1) split_at<Terms>(first + c, m, key, left < n ? left : n, even);
        if (mine & 2) split_at<Terms>(first + m.stride + c, m, key + 1, left < n ? left : n, odd);
      }
      MASKATTN_UNROLLED(p, Terms) {
        const I32 pair = __builtin_convertvector(even[p], I32) | __builtin_convertvector(odd[p], I32) << 16;
        std::memcpy(to + (p * kPanel / 2 + key / 2) * columns + c, &pair, sizeof pair);
      }
    }
  }
}

void pack_all_values(const SegmentArgs& a) {
  for (int p = 0; p < kPanels; ++p) {
    if (a.seen[p] == 0) continue;
    if (~a.seen[p]) std::memset(a.values[p], 0, values_bytes<1>(a.columns));
    pack_pairs_of_values<1, Bfloat>(a.value_rows.panel(p), a.seen[p], a.columns, a.columns, a.values[p]);
  }
}

// The rows of a piece of keys as they are, or where not all of them are seen (`mine`), copies with zeros for the others.
struct KeyPiece {
  alignas(64) Bfloat copy[kPiece * kMostDirect];
  const Bfloat* rows;
  std::ptrdiff_t stride;

  void take(const PieceMemory& m, int key, MaskWord mine, int head_dim) {
    rows = row_at<Bfloat>(m, key);
    stride = m.stride;
    if (mine == (1u << kPiece) - 1) return;
    for (int i = 0; i < kPiece; ++i)
      if (mine >> i & 1)
        std::memcpy(copy + i * head_dim, rows + i * stride, sizeof(Bfloat) * static_cast<std::size_t>(head_dim));
      else
        std::memset(copy + i * head_dim, 0, sizeof(Bfloat) * static_cast<std::size_t>(head_dim));
    rows = copy;
    stride = head_dim;
  }
};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
