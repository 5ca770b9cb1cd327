// Rows of activations times a block of packed weights, as floats.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// Bytes of weights that are fetched ahead, for the first rows of a call.
inline constexpr int kAhead = 4096;

// Weights that are needed later, fetched while others are multiplied: a line for every group of inputs. Where four or more tiles
// of rows meet the same weights, each of the first four fetches a quarter of what they meet next.
struct Later {
  const char* at;
  std::ptrdiff_t step;
  // For tile `index` of `tiles`, of weights of `groups` groups.
  Later(const void* weights, int groups, int index, int tiles)
      : at(static_cast<const char*>(weights) + static_cast<std::ptrdiff_t>(groups) * (4 * kLine + kLine * index)),
        step(tiles >= 4 && index < 4 ? kLine : 0) {}
  MASKATTN_INLINE void fetch() {
    __builtin_prefetch(at);
    at += step;
  }
  static constexpr int kLine = kBlockOutputs;  // a quarter of what a group of inputs has, in bytes
};

// What is multiplied with a group of kGroup inputs that lie together, in a row kElements elements: `add` takes the group `g` in.
// A chain has kChain inputs.
struct FloatProducts {
  using Element = float;
  static constexpr int kGroup = 1, kElements = 1, kChain = kChainInputs;
  MASKATTN_INLINE static F32 add(F32 sum, const float* row, std::ptrdiff_t g, F32 weights) {
    return fma(splat(row[g]), weights, sum);
  }
};
// bfloat16 weights, widened.
struct WidenedProducts {
  using Element = float;
  static constexpr int kGroup = 2, kElements = 2, kChain = kChainInputs;
  MASKATTN_INLINE static F32 add(F32 sum, const float* row, std::ptrdiff_t g, F32 weights) {
    const I32 pairs = (I32)weights;
    return fma(splat(row[2 * g + 1]), (F32)(pairs & -65536), fma(splat(row[2 * g]), (F32)(pairs << 16), sum));
  }
};
#ifdef MASKATTN_BFLOAT_PAIRS
// bfloat16 weights and activations rounded likewise, two inputs at a time.
struct PairProducts {
  using Element = std::int32_t;
  static constexpr int kGroup = 2, kElements = 1, kChain = 256;
  MASKATTN_INLINE static F32 add(F32 sum, const std::int32_t* row, std::ptrdiff_t g, F32 weights) {
    return dot_pairs(sum, I32{} + row[g], (I32)weights);
  }
};
#endif

template <class Products, bool Fetch>
struct ProductTile {
  // Rows x Vectors vectors of outputs, a chain of `groups` groups of inputs: of rows from `at` on, and of the block from its
  // first one on. If `first`, out is set, else added to.
  template <int Rows, int Vectors>
  __attribute__((noinline)) static void run(const typename Products::Element* const* x, std::ptrdiff_t at, const float* block,
                                            int groups, bool first, float* out, Later later) {
    constexpr int n = kLanes<float>;
    const typename Products::Element* row[Rows];
    MASKATTN_UNROLLED(r, Rows) row[r] = x[r] + at;
    F32 acc[Rows][Vectors];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, Vectors) acc[r][v] = F32{};
    for (std::ptrdiff_t g = 0; g < groups; ++g, block += kBlockOutputs) {
      if constexpr (Fetch)
        MASKATTN_UNROLLED(v, Vectors) __builtin_prefetch(reinterpret_cast<const char*>(block + v * n) + kAhead);
      else
        later.fetch();
      F32 weights[Vectors];
      MASKATTN_UNROLLED(v, Vectors) weights[v] = load(block + v * n);
      MASKATTN_UNROLLED(r, Rows)
        MASKATTN_UNROLLED(v, Vectors) acc[r][v] = Products::add(acc[r][v], row[r], g, weights[v]);
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, Vectors) {
        float* to = out + r * LinearArgs::stride + v * n;
        store(to, first ? acc[r][v] : load(to) + acc[r][v]);
      }
  }
};

// Sums of so many rows, 16 bytes x 768, what a chain has of them and of the weights: half of a first-level cache.
inline constexpr int kRowsInCache = 8 * kRowGroup;

template <class Products>
void multiply(const LinearArgs& args) {
  constexpr int n = kLanes<float>, most = MASKATTN_KEY_VECTORS, chain = Products::kChain / Products::kGroup;
  const auto* x = reinterpret_cast<const typename Products::Element* const*>(args.x);
  const auto* block = static_cast<const float*>(args.block);
  const int groups = args.inputs / Products::kGroup;
  // A chain's weights, and the sums of the rows that meet them in turn, stay in the first-level cache.
  for (int first = 0; first < args.rows; first += kRowsInCache) {
    const int end = args.rows - first < kRowsInCache ? args.rows : first + kRowsInCache;
    const int tiles = (end - first + kRowGroup - 1) / kRowGroup;
    std::ptrdiff_t at = 0;
    for (int begin = 0; begin < groups; begin += chain, at += chain * Products::kElements) {
      const int count = groups - begin < chain ? groups - begin : chain;
      const float* weights = block + static_cast<std::ptrdiff_t>(begin) * kBlockOutputs;
      for (int row = first; row < end; row += kRowGroup) {
        const int rows = end - row < kRowGroup ? end - row : kRowGroup;
        const auto tile = tiles < 4 && row == 0 ? TileTable<ProductTile<Products, true>>::of(rows, most)
                                                : TileTable<ProductTile<Products, false>>::of(rows, most);
        const Later later(weights, count, (row - first) / kRowGroup, tiles);
        for (int v = 0; v < kBlockOutputs / n; v += most)
          tile(x + row, at, weights + v * n, count, begin == 0, args.out + row * args.stride + v * n, later);
      }
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
