// Products of bfloat16 pairs on vectors: `dot_pairs`, which the set's header has, adds two products to each lane.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

inline constexpr void (*begin_tiles)() = nullptr;
inline constexpr void (*end_tiles)() = nullptr;

MASKATTN_INLINE I32 splat_pair(const std::uint16_t* p) {
  std::int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return I32{} + pair;
}
MASKATTN_INLINE I32 load_pairs(const std::uint32_t* p) {
  I32 x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

struct PairScoresTile {
  // Rows queries, `depth` elements apart, x KeyVectors vectors of keys: one chain over the pairs of coordinates.
  template <int Rows, int KeyVectors>
  __attribute__((noinline)) static void run(const std::uint16_t* q, std::ptrdiff_t depth, const std::uint32_t* keys,
                                            float* scores) {
    F32 acc[Rows][KeyVectors];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, KeyVectors) acc[r][v] = F32{};
    for (const std::uint16_t* end = q + depth; q < end; q += 2, keys += kPanel) {
      I32 key[KeyVectors];
      MASKATTN_UNROLLED(v, KeyVectors) key[v] = load_pairs(keys + v * kLanes<float>);
      MASKATTN_UNROLLED(r, Rows) {
        const I32 x = splat_pair(q + r * depth);
        MASKATTN_UNROLLED(v, KeyVectors) acc[r][v] = dot_pairs(acc[r][v], x, key[v]);
      }
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, KeyVectors) store(scores + r * kSegment + v * kLanes<float>, acc[r][v]);
  }
};

template <int Terms>
void multiply_keys(const std::uint16_t* q, int rows, int depth, const void* const* keys, const MaskWord* mask,
                   const MaskWord* group, float* scores) {
  static_assert(Terms == 1);
  constexpr int n = kLanes<float>, most = MASKATTN_KEY_VECTORS;
  for (int panel = 0; panel < kPanels; ++panel) {
    if (group[panel] == 0) continue;
    for (int row = 0; row < rows; row += kRowGroup) {
      const int count = rows - row < kRowGroup ? rows - row : kRowGroup;
      const MaskWord any = mask ? any_row(mask + row * kPanels + panel, count) : ~MaskWord{0};
      if (any == 0) continue;
      const int first = __builtin_ctzll(any) / n, last = (kPanel - 1 - __builtin_clzll(any)) / n + 1;
      for (int v = first; v < last; v += most)
        TileTable<PairScoresTile>::of(count, last - v < most ? last - v : most)(
            q + row * depth, depth, static_cast<const std::uint32_t*>(keys[panel]) + v * n,
            scores + row * kSegment + panel * kPanel + v * n);
    }
  }
}

struct PairValuesTile {
  // Rows x Columns vectors of `partial`: one chain over the pairs of keys that some row sees.
  template <int Rows, int Columns>
  __attribute__((noinline)) static void run(const std::uint16_t* weights, const MaskWord* any, const void* const* values,
                                            int column, int columns, float* partial) {
    F32 acc[Rows][Columns];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(c, Columns) acc[r][c] = F32{};
    for (int panel = 0; panel < kPanels; ++panel) {
      if (any[panel] == 0) continue;
      const int first = __builtin_ctzll(any[panel]) / 2, last = (kPanel - 1 - __builtin_clzll(any[panel])) / 2;
      const std::uint32_t* value = static_cast<const std::uint32_t*>(values[panel]) + first * columns + column;
      const std::uint16_t* p = weights + panel * kPanel + 2 * first;
      for (int pair = first; pair <= last; ++pair, value += columns, p += 2) {
        I32 v[Columns];
        MASKATTN_UNROLLED(c, Columns) v[c] = load_pairs(value + c * kLanes<float>);
        MASKATTN_UNROLLED(r, Rows) {
          const I32 x = splat_pair(p + r * WeightsLayout<1>::row);
          MASKATTN_UNROLLED(c, Columns) acc[r][c] = dot_pairs(acc[r][c], x, v[c]);
        }
      }
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(c, Columns) store(partial + r * columns + c * kLanes<float>, acc[r][c]);
  }
};

template <int Terms>
void multiply_values(const std::uint16_t* weights, int rows, const MaskWord* mask, const void* const* values, int columns,
                     float* partial) {
  static_assert(Terms == 1);
  constexpr int width = MASKATTN_KEY_VECTORS * kLanes<float>;
  for (int row = 0; row < rows; row += kRowGroup) {
    const int count = rows - row < kRowGroup ? rows - row : kRowGroup;
    MaskWord any[kPanels];
    for (int panel = 0; panel < kPanels; ++panel) any[panel] = mask ? any_row(mask + row * kPanels + panel, count) : ~MaskWord{0};
    for (int column = 0; column < columns; column += width)
      TileTable<PairValuesTile>::of(count, (columns - column < width ? columns - column : width) / kLanes<float>)(
          weights + row * WeightsLayout<1>::row, any, values, column, columns, partial + row * columns + column);
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
