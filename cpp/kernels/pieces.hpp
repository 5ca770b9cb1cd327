// Elements as sums of bfloat16 numbers, and the layouts in which matrix units read them: pairs of neighbours along the axis that
// is summed over, as a 32-bit word each.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

MASKATTN_INLINE F32 from_bfloat(U16 x) { return bits_as<F32>(__builtin_convertvector(x, I32) << 16); }
MASKATTN_INLINE U16 upper_half(F32 x) { return __builtin_convertvector(bits_as<I32>(x) >> 16, U16); }

// Three pieces are cut off, which is exact: 8 + 8 + 8 digits. One or two are rounded; of two the first too, or the second would
// have the sign of the first, and products of second pieces, which are left out, would not average out. Infinity and NaN are one
// piece.
template <int Pieces>
MASKATTN_INLINE void split(F32 x, U16 (&piece)[Pieces]) {
  if constexpr (Pieces == 1) {
    piece[0] = float_to_bfloat(x);
  } else {
    const auto finite = x - x == 0;
    const F32 number = bits_as<F32>(bits_as<I32>(x) & (finite ? I32{} - 1 : I32{}));
    if constexpr (Pieces == 3) {
      piece[0] = upper_half(x);
      F32 rest = number - bits_as<F32>(bits_as<I32>(number) & -0x10000);
      piece[1] = upper_half(rest);
      piece[2] = upper_half(rest - from_bfloat(piece[1]));
    } else {
      constexpr float kLargest = 0x1.fep127f;  // of bfloat16: nothing finite becomes infinite
      const U16 first = float_to_bfloat(vmin(splat(kLargest), vmax(splat(-kLargest), number)));
      piece[0] = __builtin_convertvector(finite ? __builtin_convertvector(first, I32) : bits_as<I32>(x) >> 16, U16);
      piece[1] = float_to_bfloat(number - from_bfloat(first));
    }
  }
}

// A query has `padded` coordinates, zeros behind its own; a block has its pieces one behind the other.
inline constexpr int kDepth = 32;  // what one product of tiles sums over
constexpr int padded(int dim) { return (dim + kDepth - 1) / kDepth * kDepth; }

template <int Pieces>
std::size_t query_bytes(int head_dim) {
  return sizeof(std::uint16_t) * Pieces * kBlockRows * static_cast<std::size_t>(padded(head_dim));
}

template <int Pieces>
void split_query(const float* from, int row, int head_dim, void* queries) {
  constexpr int n = kLanes<float>;
  const int depth = padded(head_dim);
  std::uint16_t* to = static_cast<std::uint16_t*>(queries) + row * depth;
  for (int d = 0; d < depth; d += n) {
    const int left = head_dim - d < n ? head_dim - d : n;
    U16 piece[Pieces];
    split<Pieces>(left == n ? load(from + d) : left > 0 ? load_first(from + d, left) : F32{}, piece);
    MASKATTN_UNROLLED(i, Pieces) std::memcpy(to + i * kBlockRows * depth + d, &piece[i], sizeof piece[i]);
  }
}

// Keys: [piece][padded / 2][kPanel] pairs of coordinates.
template <int Pieces>
std::size_t keys_bytes(int head_dim) {
  return sizeof(std::uint16_t) * Pieces * kPanel * static_cast<std::size_t>(padded(head_dim));
}

template <class S>
inline constexpr bool kIsBfloat = false;
template <>
inline constexpr bool kIsBfloat<Bfloat> = true;

template <int Pieces, class S>
MASKATTN_INLINE void split_at(const S* p, const PanelMemory& m, int key, int count, U16 (&piece)[Pieces]) {
  if constexpr (Pieces == 1 && kIsBfloat<S>)
    piece[0] = load_bits<U16>(p, count);
  else
    split<Pieces>(load_row<float>(p, m, key, count), piece);
}

template <int Pieces, class S>
void pack_pairs_of_keys(const PanelMemory& m, MaskWord seen, int head_dim, void* panel) {
  constexpr int n = kLanes<float>;
  static_assert(2 * n == kDepth);
  constexpr MaskWord all = ~MaskWord{0} >> (64 - n);
  const int depth = padded(head_dim);
  float* const to = static_cast<float*>(panel);
  for (int key = 0; key < kPanel; key += n) {
    const MaskWord mine = seen >> key & all;
    if (mine == 0) continue;
    const S* first = static_cast<const S*>(m.data) + key * m.stride;
    for (int d = 0; d < depth; d += kDepth) {
      F32 x[n];
      if constexpr (Pieces == 1 && kIsBfloat<S>) {
        if (mine == all && head_dim - d >= kDepth && m.stride % 2 == 0) {
          load_transposed(reinterpret_cast<const float*>(first + d), m.stride / 2, x);
          MASKATTN_UNROLLED(i, n) __builtin_prefetch(first + d + (i + kPrefetchKeys) * m.stride);
          MASKATTN_UNROLLED(i, n) store(to + (d / 2 + i) * kPanel + key, x[i]);
          continue;
        }
      }
      std::uint16_t square[Pieces][n][kDepth] = {};
      for (int i = 0; i < n; ++i)
        for (int half = 0; half < kDepth && (mine >> i & 1); half += n) {
          const int left = head_dim - d - half;
          if (left <= 0) break;
          U16 piece[Pieces];
          const S* from = first + i * m.stride + d + half;
          if (left >= n)
            split_at<Pieces>(from, m, key + i, n, piece);
          else
            split_at<Pieces>(from, m, key + i, left, piece);
          MASKATTN_UNROLLED(p, Pieces) std::memcpy(square[p][i] + half, &piece[p], sizeof piece[p]);
        }
      for (int p = 0; p < Pieces; ++p) {
        load_transposed(reinterpret_cast<const float*>(square[p]), n, x);
        MASKATTN_UNROLLED(i, n) store(to + ((p * depth + d) / 2 + i) * kPanel + key, x[i]);
      }
    }
  }
}

// Weights of kMatrixRows rows, in elements. A single piece takes the place of its scores, half as wide, so that both fit into the
// first-level cache; several have a place of their own.
template <int Pieces>
struct WeightsLayout {
  static constexpr int row = Pieces == 1 ? 2 * kSegment : kSegment, piece = kMatrixRows * row;
};

// Values: [piece][kPanel / 2][columns] pairs of keys.
template <int Pieces>
std::size_t values_bytes(int columns) {
  return sizeof(std::uint16_t) * Pieces * kPanel * static_cast<std::size_t>(columns);
}

template <int Pieces, class S>
void pack_pairs_of_values(const PanelMemory& m, MaskWord seen, int dim, int columns, void* panel) {
  constexpr int n = kLanes<float>;
  std::uint32_t* const to = static_cast<std::uint32_t*>(panel);
  for (int key = 0; key < kPanel; key += 2) {
    const MaskWord mine = seen >> key & 3;
    if (mine == 0) continue;
    const S* first = static_cast<const S*>(m.data) + key * m.stride;
    for (int c = 0; c < columns; c += n) {
      const int left = dim - c;
      U16 even[Pieces] = {}, odd[Pieces] = {};
      if (left >= n && mine == 3) {
        split_at<Pieces>(first + c, m, key, n, even);
        split_at<Pieces>(first + m.stride + c, m, key + 1, n, odd);
      } else if (left > 0) {
        if (mine & 1) split_at<Pieces>(first + c, m, key, left < n ? left : n, even);
        if (mine & 2) split_at<Pieces>(first + m.stride + c, m, key + 1, left < n ? left : n, odd);
      }
      MASKATTN_UNROLLED(p, Pieces) {
        const I32 pair = __builtin_convertvector(even[p], I32) | __builtin_convertvector(odd[p], I32) << 16;
        std::memcpy(to + (p * kPanel / 2 + key / 2) * columns + c, &pair, sizeof pair);
      }
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
