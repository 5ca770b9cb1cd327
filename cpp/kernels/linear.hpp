// Rows of activations times a block of packed weights.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

typedef std::int16_t I16 __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));

// Lane by lane the sum of two products of signed halves.
template <class V>
MASKATTN_INLINE I32 pair_products(V a, V b) {
  const I32 x = (I32)a, y = (I32)b;
  return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
}
// sum + the sum of four products of bytes, those of u unsigned, those of s signed.
template <class V>
MASKATTN_INLINE I32 dot_bytes(V sum, I32 u, I32 s) {
  const I16 even = (I16)s << 8 >> 8, odd = (I16)s >> 8;
  return sum + pair_products(even, (I16)(u & 0x00ff00ff)) + pair_products(odd, (I16)(u >> 8 & 0x00ff00ff));
}

// Bytes of weights that are fetched ahead, for the first rows of a call.
inline constexpr int kAhead = 4096;

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
                                            int groups, bool first, float* out) {
    constexpr int n = kLanes<float>;
    const typename Products::Element* row[Rows];
    MASKATTN_UNROLLED(r, Rows) row[r] = x[r] + at;
    F32 acc[Rows][Vectors];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, Vectors) acc[r][v] = F32{};
    for (std::ptrdiff_t g = 0; g < groups; ++g, block += kBlockOutputs) {
      if constexpr (Fetch)
        MASKATTN_UNROLLED(v, Vectors) __builtin_prefetch(reinterpret_cast<const char*>(block + v * n) + kAhead);
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
    std::ptrdiff_t at = 0;
    for (int begin = 0; begin < groups; begin += chain, at += chain * Products::kElements) {
      const int count = groups - begin < chain ? groups - begin : chain;
      for (int row = first; row < end; row += kRowGroup) {
        const int rows = end - row < kRowGroup ? end - row : kRowGroup;
        for (int v = 0; v < kBlockOutputs / n; v += most) {
          const auto tile = row == 0 ? TileTable<ProductTile<Products, true>>::of(rows, most)
                                     : TileTable<ProductTile<Products, false>>::of(rows, most);
          tile(x + row, at, block + static_cast<std::ptrdiff_t>(begin) * kBlockOutputs + v * n, count, begin == 0,
               args.out + row * args.stride + v * n);
        }
      }
    }
  }
}

template <auto Value>
struct Constant {
  static constexpr auto value = Value;
};

// Two sums of products a row and vector: half as many rows share a load of weights.
inline constexpr int kIntegerRows = kRowGroup / 2;

// What sums of products with high and low bytes stand for, of outputs from `first` on.
MASKATTN_INLINE F32 scaled(I32 high, I32 low, const BlockScales& scales, int first, float x_scale) {
  I32 sum;
  std::memcpy(&sum, scales.sum + first, sizeof sum);
  // q - 32768 = 256 (high - 128) + low.
  const F32 upper = __builtin_convertvector(high - (sum << 7), F32), lower = __builtin_convertvector(low, F32);
  return fma(upper, splat(256.f), lower) * (load(scales.scale + first) * splat(x_scale));
}

template <int Rows, int Vectors, bool Fetch>
MASKATTN_INLINE void integer_tile(const QuantizedRow* const* x, const std::int32_t* block, int groups, const BlockScales& scales,
                                  int first, float* out, std::ptrdiff_t stride) {
  constexpr int n = kLanes<float>;
  const std::uint32_t* bytes[Rows];
  MASKATTN_UNROLLED(r, Rows) bytes[r] = x[r]->bytes;
  I32 high[Rows][Vectors], low[Rows][Vectors];
  MASKATTN_UNROLLED(r, Rows)
    MASKATTN_UNROLLED(v, Vectors) high[r][v] = low[r][v] = I32{};
  const std::int32_t* at = block + first;
  for (std::ptrdiff_t g = 0; g < groups; ++g, at += kBlockOutputs) {
    if constexpr (Fetch)
      MASKATTN_UNROLLED(v, Vectors) __builtin_prefetch(reinterpret_cast<const char*>(at + v * n) + kAhead);
    I32 weight[Vectors];
    MASKATTN_UNROLLED(v, Vectors) std::memcpy(&weight[v], at + v * n, sizeof(I32));
    MASKATTN_UNROLLED(r, Rows) {
      const I32 upper = I32{} + static_cast<std::int32_t>(bytes[r][g]),
                lower = I32{} + static_cast<std::int32_t>(bytes[r][groups + g]);
      MASKATTN_UNROLLED(v, Vectors) {
        high[r][v] = dot_bytes(high[r][v], upper, weight[v]);
        low[r][v] = dot_bytes(low[r][v], lower, weight[v]);
      }
    }
  }
  MASKATTN_UNROLLED(v, Vectors)
    MASKATTN_UNROLLED(r, Rows)
      store(out + r * stride + first + v * n, scaled(high[r][v], low[r][v], scales, first + v * n, x[r]->scale));
}

template <int Rows, bool Fetch>
__attribute__((noinline)) void integer_rows(const QuantizedRow* const* x, const LinearArgs& args, float* out) {
  const int groups = args.inputs / 4;
  const auto* block = static_cast<const std::int32_t*>(args.block);
  BlockScales scales;
  std::memcpy(&scales, block + static_cast<std::ptrdiff_t>(groups) * kBlockOutputs, sizeof scales);
  for (int first = 0; first < kBlockOutputs; first += MASKATTN_KEY_VECTORS * kLanes<float>)
    integer_tile<Rows, MASKATTN_KEY_VECTORS, Fetch>(x, block, groups, scales, first, out, args.stride);
}

// rows(constant<rows>, constant<whether to fetch what follows>, first row) for all rows, kIntegerRows at a time.
template <class Body>
MASKATTN_INLINE void over_rows(int rows, const Body& body) {
  static_assert(kIntegerRows == 3);
  int row = 0;
  for (; row + 3 <= rows; row += 3)
    if (row == 0)
      body(Constant<3>{}, Constant<true>{}, row);
    else
      body(Constant<3>{}, Constant<false>{}, row);
  const int left = rows - row;
  if (left == 2 && row == 0) body(Constant<2>{}, Constant<true>{}, row);
  if (left == 2 && row != 0) body(Constant<2>{}, Constant<false>{}, row);
  if (left == 1 && row == 0) body(Constant<1>{}, Constant<true>{}, row);
  if (left == 1 && row != 0) body(Constant<1>{}, Constant<false>{}, row);
}

inline void multiply_integers(const LinearArgs& args) {
  const auto* x = reinterpret_cast<const QuantizedRow* const*>(args.x);
  over_rows(args.rows, [&](auto rows, auto fetch, int row) {
    integer_rows<rows.value, fetch.value>(x + row, args, args.out + row * args.stride);
  });
}

typedef std::uint8_t Bytes __attribute__((vector_size(MASKATTN_VECTOR_BYTES / 4)));  // as many as floats

// x as integers of 16 bits, plus `offset`: their bytes go to `row`, and each vector of them to `take`.
template <class Row, class Take>
MASKATTN_INLINE void quantize_row(const float* x, int inputs, int padded, int offset, Row* row, const Take& take) {
  constexpr int n = kLanes<float>;
  F32 largest = {}, wrong = {};
  for (int i = 0; i < inputs; i += n) {
    const F32 value = load_up_to(x + i, inputs - i);
    largest = vmax(largest, vmax(value, -value));
    wrong += value - value;
  }
  // NaN and infinity have no integers: all that the row makes is NaN then.
  const bool finite = sum_lanes<float>(wrong) == 0;
  const float most = max_lanes<float>(largest);
  row->scale = finite ? most / 32767 : __builtin_nanf("");
  const F32 factor = splat(most > 1e-34f ? 32767 / most : 0);
  for (int i = 0; i < padded; i += n) {
    const F32 value = finite && i < inputs ? load_up_to(x + i, inputs - i) : F32{};
    const I32 q = __builtin_convertvector(round_even(value * factor), I32);
    take(i, q);
    const Bytes high = __builtin_convertvector(((q + offset) >> 8) & 255, Bytes), low = __builtin_convertvector(q & 255, Bytes);
    std::uint32_t words[2][n / 4];
    std::memcpy(words[0], &high, sizeof high);
    std::memcpy(words[1], &low, sizeof low);
    for (int g = 0; g < n / 4 && 4 * g < padded - i; ++g) {
      row->bytes[i / 4 + g] = words[0][g];
      row->bytes[(padded + i) / 4 + g] = words[1][g];
    }
  }
}

inline void quantize(const float* x, int inputs, int padded, void* to) {
  quantize_row(x, inputs, padded, 32768, static_cast<QuantizedRow*>(to), [](int, I32) {});
}

inline void quantize_signed(const float* x, int inputs, int padded, void* to) {
  const auto row = static_cast<SignedRow*>(to);
  std::int32_t* sums = reinterpret_cast<std::int32_t*>(row->bytes + padded / 2);
  static_assert(kScaleGroup % kLanes<float> == 0);
  quantize_row(x, inputs, padded, 0, row, [&](int i, I32 q) {
    std::int32_t sum = i % kScaleGroup == 0 ? 0 : sums[i / kScaleGroup];
    for (int lane = 0; lane < kLanes<float>; ++lane) sum += q[lane];
    sums[i / kScaleGroup] = sum;
  });
}

// Of one group: Rows x Vectors vectors of outputs from `first` on, times the scales, added to `out`.
template <int Rows, int Vectors, bool Zeros, bool Fetch>
MASKATTN_INLINE void nibble_tile(const SignedRow* const* x, const LinearArgs& args, const std::int32_t* group, int begin,
                                 int first, float* out) {
  constexpr int n = kLanes<float>;
  const std::uint32_t* bytes[Rows];
  MASKATTN_UNROLLED(r, Rows) bytes[r] = x[r]->bytes + begin / 4;
  const std::ptrdiff_t low_bytes = args.inputs / 4;
  I32 high[Rows][Vectors], low[Rows][Vectors];
  MASKATTN_UNROLLED(r, Rows)
    MASKATTN_UNROLLED(v, Vectors) high[r][v] = low[r][v] = I32{};
  const std::int32_t* at = group + first;
  for (int g = 0; g < args.group / 8; ++g, at += kBlockOutputs) {
    if constexpr (Fetch)
      MASKATTN_UNROLLED(v, Vectors) __builtin_prefetch(reinterpret_cast<const char*>(at + v * n) + kAhead);
    I32 weight[2][Vectors];  // of the first four inputs and of the others
    MASKATTN_UNROLLED(v, Vectors) {
      I32 both;
      std::memcpy(&both, at + v * n, sizeof both);
      weight[0][v] = both & 0x0f0f0f0f;
      weight[1][v] = both >> 4 & 0x0f0f0f0f;
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(half, 2) {
        const I32 upper = I32{} + static_cast<std::int32_t>(bytes[r][2 * g + half]),
                  lower = I32{} + static_cast<std::int32_t>(bytes[r][low_bytes + 2 * g + half]);
        MASKATTN_UNROLLED(v, Vectors) {
          high[r][v] = dot_bytes(high[r][v], weight[half][v], upper);
          low[r][v] = dot_bytes(low[r][v], lower, weight[half][v]);
        }
      }
  }
  const auto* scales = reinterpret_cast<const Half*>(group + args.group / 8 * kBlockOutputs) + first;
  std::int32_t sums[Rows];
  MASKATTN_UNROLLED(r, Rows) {
    sums[r] = 0;
    for (int i = 0; i < args.group; i += kScaleGroup) sums[r] += x[r]->sums(args.inputs)[(begin + i) / kScaleGroup];
  }
  MASKATTN_UNROLLED(v, Vectors) {
    const F32 scale = widen(scales + v * n, n);
    MASKATTN_UNROLLED(r, Rows) {
      const I32 products = (high[r][v] << 8) + low[r][v];
      F32 sum;
      if constexpr (Zeros)
        sum = fma(splat(-static_cast<float>(sums[r])), widen(scales + kBlockOutputs + v * n, n),
                  __builtin_convertvector(products, F32));
      else
        sum = __builtin_convertvector(products - 8 * sums[r], F32);
      float* to = out + r * args.stride + first + v * n;
      store(to, begin == 0 ? sum * scale : fma(sum, scale, load(to)));
    }
  }
}

template <int Rows, bool Zeros, bool Fetch>
__attribute__((noinline)) void nibble_rows(const SignedRow* const* x, const LinearArgs& args, float* out) {
  const std::ptrdiff_t group_words = args.group / 8 * kBlockOutputs + (Zeros ? 2 : 1) * kBlockOutputs / 2;
  const auto* group = static_cast<const std::int32_t*>(args.block);
  for (int begin = 0; begin < args.inputs; begin += args.group, group += group_words)
    for (int first = 0; first < kBlockOutputs; first += MASKATTN_KEY_VECTORS * kLanes<float>)
      nibble_tile<Rows, MASKATTN_KEY_VECTORS, Zeros, Fetch>(x, args, group, begin, first, out);
  MASKATTN_UNROLLED(r, Rows)
    for (int o = 0; o < kBlockOutputs; o += kLanes<float>) {
      float* to = out + r * args.stride + o;
      store(to, load(to) * splat(x[r]->scale));
    }
}

template <bool Zeros>
void multiply_nibbles(const LinearArgs& args) {
  const auto* x = reinterpret_cast<const SignedRow* const*>(args.x);
  over_rows(args.rows, [&](auto rows, auto fetch, int row) {
    nibble_rows<rows.value, Zeros, fetch.value>(x + row, args, args.out + row * args.stride);
  });
}

#ifdef MASKATTN_BFLOAT_PAIRS
inline void to_pairs(const float* x, int inputs, int, void* to) {
  constexpr int n = kLanes<float>;
  for (int i = 0; i < inputs; i += 2 * n) {
    const int left = inputs - i;
    const I32 pairs = round_to_bfloats(load_up_to(x + i, left), left > n ? load_up_to(x + i + n, left - n) : F32{});
    const int groups = left < 2 * n ? (left + 1) / 2 : n;
    std::memcpy(static_cast<std::int32_t*>(to) + i / 2, &pairs, sizeof(std::int32_t) * static_cast<std::size_t>(groups));
  }
}
#endif

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
