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

// Few rows: keys are transposed, and values paired, in registers on their way from memory; the chains are those above.

inline constexpr int kFewDirect = kRowGroup;

struct DirectScoresTile {
  // Rows queries against two pieces of keys, whose chains hide each other's latency.
  template <int Rows, int>
  __attribute__((noinline)) static void run(const std::uint16_t* q, int head_dim, const KeyPiece* keys, Prefetcher* later,
                                            float* scores) {
    constexpr int kStep = 8;  // coordinates that are transposed at once
    F32 acc[Rows][2];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, 2) acc[r][v] = F32{};
    for (int d = 0; d < head_dim; d += kStep) {
      F32 pairs[2][kStep / 2];
      MASKATTN_UNROLLED(v, 2) {
        load_words(reinterpret_cast<const char*>(keys[v].rows + d), keys[v].stride * 2, pairs[v]);
        later[v].lines(kPiece / 4);  // a step reads 16 bytes of each key
      }
      MASKATTN_UNROLLED(i, kStep / 2)
        MASKATTN_UNROLLED(r, Rows) {
          const I32 x = splat_pair(q + r * head_dim + d + 2 * i);
          MASKATTN_UNROLLED(v, 2) acc[r][v] = dot_pairs(acc[r][v], x, bits_as<I32>(pairs[v][i]));
        }
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, 2) store(scores + r * kSegment + v * kPiece, acc[r][v]);
  }
};

void multiply_keys_directly(const std::uint16_t* q, int rows, int head_dim, const PieceMemory& keys, const MaskWord* seen,
                            float* scores) {
  constexpr MaskWord all = (1u << kPiece) - 1;
  const auto tile = TileTable<DirectScoresTile>::of(rows, 1);
  KeyPiece two[2];
  for (int key = 0; key < kSegment; key += 2 * kPiece) {
    const MaskWord mine = seen[key / kPanel] >> (key % kPanel);
    if ((mine & (all | all << kPiece)) == 0) continue;
    two[0].take(keys, key, mine & all, head_dim);
    two[1].take(keys, key + kPiece, mine >> kPiece & all, head_dim);
    Prefetcher later[2] = {prefetch_later<Bfloat>(keys, key, head_dim), prefetch_later<Bfloat>(keys, key + kPiece, head_dim)};
    tile(q, head_dim, two, later, scores + key);
  }
}

struct DirectValuesTile {
  // One panel, whose products continue the chains in `partial` unless it is the first. `later`, `later_rows`: as in ValuesTile.
  template <int Rows, int Columns>
  __attribute__((noinline)) static void run(const std::uint16_t* weights, MaskWord seen, const PieceMemory& values, int column,
                                            int columns, bool first, float* partial) {
    constexpr int n = kLanes<float>;
    const int later = kPanel * column / columns, later_rows = kPiece * Columns * n / columns;
    F32 acc[Rows][Columns];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(c, Columns) acc[r][c] = first ? F32{} : load(partial + r * columns + c * n);
    for (int piece = 0; piece < kPanel / kPiece; ++piece) {
      Prefetcher next = prefetch_later<Bfloat>(values, later + piece * later_rows, columns);
      const Bfloat* row = row_at<Bfloat>(values, piece * kPiece) + column;
      const std::uint16_t* p = weights + piece * kPiece;
      for (int key = 0; key < kPiece; key += 2, row += 2 * values.stride, p += 2) {
        const unsigned both = seen >> (piece * kPiece + key) & 3;
        if (both == 0) continue;
        next.lines(Columns);
        I32 v[Columns];
        MASKATTN_UNROLLED(c, Columns) {
          const U16 even = both & 1 ? load_bits<U16>(row + c * n, n) : U16{};
          const U16 odd = both & 2 ? load_bits<U16>(row + values.stride + c * n, n) : U16{};
          v[c] = zero_extend(even) | zero_extend(odd) << 16;
        }
        MASKATTN_UNROLLED(r, Rows) {
          const I32 x = splat_pair(p + r * WeightsLayout<1>::row);
          MASKATTN_UNROLLED(c, Columns) acc[r][c] = dot_pairs(acc[r][c], x, v[c]);
        }
      }
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(c, Columns) store(partial + r * columns + c * n, acc[r][c]);
  }
};

void multiply_values_of_few(const SegmentArgs& a, const std::uint16_t* weights) {
  constexpr int width = MASKATTN_KEY_VECTORS * kLanes<float>;
  bool first = true;
  for (int panel = 0; panel < kPanels; ++panel) {
    if (a.seen[panel] == 0) continue;
    for (int column = 0; column < a.columns; column += width)
      TileTable<DirectValuesTile>::of(a.softmax.rows, (a.columns - column < width ? a.columns - column : width) / kLanes<float>)(
          weights + panel * kPanel, a.seen[panel], a.value_rows.panel(panel), column, a.columns, first, a.partial + column);
    first = false;
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
