// Products of bfloat16 pairs on tiles of 16 rows of 64 bytes: `tile_zero`, `tile_load`, `tile_stream`, `tile_store` and
// `tile_multiply` are the set's header's. Tiles 0 to 3 are sums, 4 and 5 rows (queries or weights), 6 and 7 columns (keys or
// values).
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

inline constexpr int kTile = 16;  // rows, and 32-bit columns, of a tile

// Which terms are multiplied, the smallest products first: those of weight 2^-16 (three terms only), 2^-8 and 1.
template <int Terms>
struct Products;
template <>
struct Products<1> {
  static constexpr int count = 1, left[] = {0}, right[] = {0};
};
template <>
struct Products<2> {
  static constexpr int count = 3, left[] = {1, 0, 0}, right[] = {0, 1, 0};
};
template <>
struct Products<3> {
  static constexpr int count = 6, left[] = {2, 1, 0, 1, 0, 0}, right[] = {0, 1, 2, 0, 1, 0};
};

// An operand: where its first tile is, and bytes from row to row and from term to term.
struct Operand {
  const char* data;
  std::ptrdiff_t row, term;
};

// Sums of RowTiles x ColumnTiles tiles.
template <int RowTiles, int ColumnTiles>
struct TileBlock {
  static_assert(RowTiles <= 2 && RowTiles * ColumnTiles <= 4);

  static MASKATTN_INLINE void zero() {
    tile_zero<0>();
    if constexpr (RowTiles * ColumnTiles > 1) tile_zero<1>();
    if constexpr (RowTiles * ColumnTiles > 2) tile_zero<2>();
    if constexpr (RowTiles * ColumnTiles > 3) tile_zero<3>();
  }

  // Adds left . right over `steps` x kDepth.
  template <int Terms>
  static MASKATTN_INLINE void multiply(const Operand& left, const Operand& right, int steps) {
    using P = Products<Terms>;
    for (int product = 0; product < P::count; ++product) {
      const char* a = left.data + P::left[product] * left.term;
      const char* b = right.data + P::right[product] * right.term;
      for (int step = 0; step < steps; ++step, a += 2 * kDepth, b += kTile * right.row) {
        tile_load<4>(a, left.row);
        if constexpr (RowTiles > 1) tile_load<5>(a + kTile * left.row, left.row);
        column<0, 6>(b, right.row);
        if constexpr (ColumnTiles > 1) column<1, 7>(b, right.row);
        if constexpr (ColumnTiles > 2) column<2, 6>(b, right.row);
        if constexpr (ColumnTiles > 3) column<3, 7>(b, right.row);
      }
    }
  }

  static MASKATTN_INLINE void store(float* to, std::ptrdiff_t row) {
    store_one<0>(to, row);
    if constexpr (RowTiles * ColumnTiles > 1) store_one<1>(to, row);
    if constexpr (RowTiles * ColumnTiles > 2) store_one<2>(to, row);
    if constexpr (RowTiles * ColumnTiles > 3) store_one<3>(to, row);
  }

 private:
  template <int Column, int Tile>
  static MASKATTN_INLINE void column(const char* b, std::ptrdiff_t row) {
    tile_stream<Tile>(b + Column * 4 * kTile, row);
    tile_multiply<Column, 4, Tile>();
    if constexpr (RowTiles > 1) tile_multiply<ColumnTiles + Column, 5, Tile>();
  }
  template <int Sum>
  static MASKATTN_INLINE void store_one(float* to, std::ptrdiff_t row) {
    tile_store<Sum>(to + Sum / ColumnTiles * kTile * row + Sum % ColumnTiles * kTile, row * 4);
  }
};

// scores[row * kSegment + key] of the panels that `group` sees; whole tiles, also of rows that are not there.
template <int Terms>
void multiply_keys(const std::uint16_t* q, int rows, int depth, const void* const* keys, const MaskWord*, const MaskWord* group,
                   float* scores) {
  const Operand queries{reinterpret_cast<const char*>(q), 2 * depth, 2 * kBlockRows * depth};
  for (int panel = 0; panel < kPanels; ++panel) {
    if (group[panel] == 0) continue;
    const Operand all{static_cast<const char*>(keys[panel]), 4 * kPanel, 2 * kPanel * depth};
    float* to = scores + panel * kPanel;
    if (rows <= kTile) {
      TileBlock<1, 4>::zero();
      TileBlock<1, 4>::multiply<Terms>(queries, all, depth / kDepth);
      TileBlock<1, 4>::store(to, kSegment);
      continue;
    }
    for (int key = 0; key < kPanel; key += 2 * kTile) {
      TileBlock<2, 2>::zero();
      TileBlock<2, 2>::multiply<Terms>(queries, {all.data + 4 * key, all.row, all.term}, depth / kDepth);
      TileBlock<2, 2>::store(to + key, kSegment);
    }
  }
}

template <int Terms, class Block>
MASKATTN_INLINE void multiply_values_block(const Operand& weights, const MaskWord* group, const void* const* values, int column,
                                           int columns, float* partial) {
  Block::zero();
  for (int panel = 0; panel < kPanels; ++panel)
    if (group[panel])
      Block::template multiply<Terms>({weights.data + 2 * kPanel * panel, weights.row, weights.term},
                                      {static_cast<const char*>(values[panel]) + 4 * column, 4 * columns, 2 * kPanel * columns},
                                      kPanel / kDepth);
  Block::store(partial + column, columns);
}

template <int Terms>
void multiply_values(const std::uint16_t* weights, int rows, const MaskWord* mask, const void* const* values, int columns,
                     float* partial) {
  using Layout = WeightsLayout<Terms>;
  const Operand left{reinterpret_cast<const char*>(weights), 2 * Layout::row, 2 * Layout::term};
  MaskWord group[kPanels];
  for (int panel = 0; panel < kPanels; ++panel) group[panel] = mask ? any_row(mask + panel, rows) : ~MaskWord{0};
  for (int column = 0; column < columns;) {
    const int tiles = (columns - column) / kTile;
    if (rows <= kTile && tiles >= 4) {
      multiply_values_block<Terms, TileBlock<1, 4>>(left, group, values, column, columns, partial);
      column += 4 * kTile;
    } else if (tiles >= 2) {
      multiply_values_block<Terms, TileBlock<2, 2>>(left, group, values, column, columns, partial);
      column += 2 * kTile;
    } else {
      multiply_values_block<Terms, TileBlock<2, 1>>(left, group, values, column, columns, partial);
      column += kTile;
    }
  }
}

// Few rows: keys are rows of tiles as they lie in memory, and queries the columns, so that keys need no packing. An element of
// the product is the same sum.

inline constexpr int kFewDirect = kTile;

void multiply_keys_directly(const std::uint16_t* q, int rows, int head_dim, const PieceMemory& keys, const MaskWord* seen,
                            float* scores) {
  alignas(64) std::uint32_t queries[kMostDirect / 2][kTile] = {};  // pairs of coordinates
  for (int d = 0; d < head_dim; d += 2)
    for (int r = 0; r < rows; ++r) std::memcpy(&queries[d / 2][r], q + r * head_dim + d, sizeof(std::uint32_t));
  KeyPiece piece;
  for (int key = 0; key < kSegment; key += kPiece) {
    const MaskWord mine = seen[key / kPanel] >> (key % kPanel) & ((1u << kPiece) - 1);
    if (mine == 0) continue;
    piece.take(keys, key, mine, head_dim);
    Prefetcher later = prefetch_later<Bfloat>(keys, key, head_dim);
    tile_zero<0>();
    for (int d = 0; d < head_dim; d += kDepth) {
      tile_stream<4>(piece.rows + d, 2 * piece.stride);
      tile_load<6>(queries[d / 2], sizeof queries[0]);
      tile_multiply<0, 4, 6>();
      later.lines(kPiece);
    }
    alignas(64) float product[kPiece * kTile];
    tile_store<0>(product, sizeof(float) * kTile);
    F32 row[kTile];
    load_transposed(product, kTile, row);
    for (int r = 0; r < rows; ++r) std::memcpy(scores + r * kSegment + key, &row[r], sizeof row[r]);
  }
}

// Pairs of keys must stand side by side, which memory does not do for values.
void multiply_values_of_few(const SegmentArgs& a, const std::uint16_t* weights) {
  pack_all_values(a);
  multiply_values<1>(weights, a.softmax.rows, a.softmax.mask, a.values, a.columns, a.partial);
}

void begin_tiles() { tiles_configure(); }
void end_tiles() { tiles_release(); }

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
