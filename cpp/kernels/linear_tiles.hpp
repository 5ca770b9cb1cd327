// Rows of activations times a block of packed weights on tiles: 64 outputs of 16 groups of inputs are four tiles as they lie in
// memory. Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

inline constexpr int kTileRows = 16, kTileBytes = 64;            // of a row
inline constexpr std::ptrdiff_t kWeightRow = 4 * kBlockOutputs;  // bytes of a group of inputs

// `first` rows in the tiles of the upper half of a sum, and of activations; `second` in those of the lower one.
inline TileConfiguration tile_rows(int first, int second) {
  TileConfiguration configuration;
  constexpr int upper[] = {0, 1, 4}, lower[] = {2, 3, 5};
  for (const int tile : upper) configuration.rows[tile] = static_cast<std::uint8_t>(first);
  for (const int tile : lower) configuration.rows[tile] = static_cast<std::uint8_t>(second);
  return configuration;
}

struct TileArgs {
  const char* x;  // of the first of the rows
  std::ptrdiff_t x_stride;
  const char* weights;
  int steps;   // of 16 groups of inputs
  bool fetch;  // what comes behind, for the first rows of a call

  MASKATTN_INLINE void fetch_later(const char* at) const {
    if (fetch)
      for (int line = 0; line < kTileRows * kWeightRow; line += 64) __builtin_prefetch(at + kAhead + line);
  }
};

// Up to 16 rows: each tile of weights is read once.
inline void bfloat_tiles_of_few(const TileArgs& a, float* out, std::ptrdiff_t stride) {
  const char* w = a.weights;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int step = 0; step < a.steps; ++step, w += kTileRows * kWeightRow) {
    a.fetch_later(w);
    tile_load<4>(a.x + step * kTileBytes, a.x_stride);
    tile_stream<6>(w, kWeightRow);
    tile_multiply<0, 4, 6>();
    tile_stream<7>(w + kTileBytes, kWeightRow);
    tile_multiply<1, 4, 7>();
    tile_stream<6>(w + 2 * kTileBytes, kWeightRow);
    tile_multiply<2, 4, 6>();
    tile_stream<7>(w + 3 * kTileBytes, kWeightRow);
    tile_multiply<3, 4, 7>();
  }
  tile_store<0>(out, 4 * stride);
  tile_store<1>(out + 16, 4 * stride);
  tile_store<2>(out + 32, 4 * stride);
  tile_store<3>(out + 48, 4 * stride);
}

struct BfloatTiles {
  template <int Sum, int X, int Weights>
  static void multiply() {
    tile_multiply<Sum, X, Weights>();
  }
};
struct ByteTiles {
  template <int Sum, int X, int Weights>
  static void multiply() {
    tile_multiply_bytes<Sum, X, Weights>();
  }
};

// Tiles of activations from a.x and `second` on: two of up to 16 rows each, or the high and low bytes of one.
// The sums of 32 outputs from `first` on: of the one tile in tiles 0 and 1, of the other in 2 and 3.
template <class Tiles>
void multiply_two(const TileArgs& a, const char* second, int first) {
  const char* w = a.weights + 4 * first;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int step = 0; step < a.steps; ++step, w += kTileRows * kWeightRow) {
    if (first == 0) a.fetch_later(w);
    tile_load<4>(a.x + step * kTileBytes, a.x_stride);
    tile_load<5>(second + step * kTileBytes, a.x_stride);
    tile_load<6>(w, kWeightRow);
    Tiles::template multiply<0, 4, 6>();
    Tiles::template multiply<2, 5, 6>();
    tile_load<7>(w + kTileBytes, kWeightRow);
    Tiles::template multiply<1, 4, 7>();
    Tiles::template multiply<3, 5, 7>();
  }
}

// 17 to 32 rows, 32 outputs at a time.
inline void bfloat_tiles(const TileArgs& a, float* out, std::ptrdiff_t stride) {
  for (int first = 0; first < kBlockOutputs; first += 32, out += 32) {
    multiply_two<BfloatTiles>(a, a.x + kTileRows * a.x_stride, first);
    tile_store<0>(out, 4 * stride);
    tile_store<1>(out + 16, 4 * stride);
    tile_store<2>(out + kTileRows * stride, 4 * stride);
    tile_store<3>(out + kTileRows * stride + 16, 4 * stride);
  }
}

MASKATTN_INLINE std::ptrdiff_t row_stride(const LinearArgs& args) {
  return args.rows > 1 ? static_cast<const char*>(args.x[1]) - static_cast<const char*>(args.x[0]) : kTileBytes;
}

// A row has the same sums in every tile; whether there are tiles depends on the weight alone.
inline void multiply_bfloats_on_tiles(const LinearArgs& args) {
  if (args.inputs % (2 * kTileRows) != 0) return multiply<PairProducts>(args);
  for (int row = 0; row < args.rows; row += 2 * kTileRows) {
    const int rows = args.rows - row < 2 * kTileRows ? args.rows - row : 2 * kTileRows;
    const TileArgs tiles{static_cast<const char*>(args.x[row]), row_stride(args), static_cast<const char*>(args.block),
                         args.inputs / (2 * kTileRows), row == 0};
    float* out = args.out + row * args.stride;
    if (rows <= kTileRows) {
      tiles_configure(tile_rows(rows, rows));
      bfloat_tiles_of_few(tiles, out, args.stride);
    } else {
      tiles_configure(tile_rows(kTileRows, rows - kTileRows));
      bfloat_tiles(tiles, out, args.stride);
    }
  }
  tiles_release();
}

// 32 outputs of a tile's rows, as integers.
using TileSums = std::int32_t[kTileRows][32];

template <int Left, int Right>
void store_sums(TileSums& sums) {
  tile_store<Left>(sums, sizeof sums[0]);
  tile_store<Right>(&sums[0][16], sizeof sums[0]);
}

// `low` null: there are no low bytes.
inline void store_scaled(const TileSums& high, const TileSums* low, const QuantizedRow* const* x, int rows,
                         const BlockScales& scales, int first, float* out, std::ptrdiff_t stride) {
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < 32; v += kLanes<float>) {
      I32 upper, lower{};
      std::memcpy(&upper, high[r] + v, sizeof upper);
      if (low) std::memcpy(&lower, (*low)[r] + v, sizeof lower);
      store(out + r * stride + first + v, scaled(upper, lower, scales, first + v, *x[r]));
    }
}

inline TileArgs byte_tiles(const LinearArgs& args, int row) {
  const auto* x = static_cast<const QuantizedRow*>(args.x[row]);
  return {reinterpret_cast<const char*>(x->bytes), row_stride(args), static_cast<const char*>(args.block),
          args.inputs / (4 * kTileRows), row == 0};
}

// Up to 16 rows of 16 bits.
inline void integer_tiles(const LinearArgs& args, int row, int rows, const BlockScales& scales) {
  const auto* const* x = reinterpret_cast<const QuantizedRow* const*>(args.x) + row;
  const TileArgs a = byte_tiles(args, row);
  tiles_configure(tile_rows(rows, rows));
  for (int first = 0; first < kBlockOutputs; first += 32) {
    multiply_two<ByteTiles>(a, a.x + args.inputs, first);
    alignas(64) TileSums high, low;
    store_sums<0, 1>(high);
    store_sums<2, 3>(low);
    store_scaled(high, &low, x, rows, scales, first, args.out + row * args.stride, args.stride);
  }
}

// 17 to 32 rows of 8 bits.
inline void byte_tiles_of_many(const LinearArgs& args, int row, int rows, const BlockScales& scales) {
  const auto* const* x = reinterpret_cast<const QuantizedRow* const*>(args.x) + row;
  const TileArgs a = byte_tiles(args, row);
  float* out = args.out + row * args.stride;
  tiles_configure(tile_rows(kTileRows, rows - kTileRows));
  for (int first = 0; first < kBlockOutputs; first += 32) {
    multiply_two<ByteTiles>(a, a.x + kTileRows * a.x_stride, first);
    alignas(64) TileSums upper, lower;
    store_sums<0, 1>(upper);
    store_sums<2, 3>(lower);
    store_scaled(upper, nullptr, x, kTileRows, scales, first, out, args.stride);
    store_scaled(lower, nullptr, x + kTileRows, rows - kTileRows, scales, first, out + kTileRows * args.stride, args.stride);
  }
}

// Sums of integers are exact: few rows may do without tiles.
inline void multiply_integers_on_tiles(const LinearArgs& args) {
  if (args.inputs % (4 * kTileRows) != 0 || args.rows <= kIntegerRows<16>) return multiply_integers(args);
  BlockScales scales;
  std::memcpy(&scales, static_cast<const char*>(args.block) + args.inputs * kBlockOutputs, sizeof scales);
  const auto* x = reinterpret_cast<const QuantizedRow* const*>(args.x);
  for (int row = 0, rows; row < args.rows; row += rows) {
    rows = args.rows - row < 2 * kTileRows ? args.rows - row : 2 * kTileRows;
    if (rows > kTileRows && all_of_8_bits(x + row, rows)) {
      byte_tiles_of_many(args, row, rows, scales);
    } else {
      rows = rows < kTileRows ? rows : kTileRows;
      integer_tiles(args, row, rows, scales);
    }
  }
  tiles_release();
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
