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

// Bytes of weights that are fetched ahead for a single row; products of several rows wait for arithmetic.
inline constexpr int kAhead = 4096;

// What products of floats do with a group of inputs: the weights of the first (or only) and of the second one.
struct FloatWeights {
  static constexpr int kGroup = 1;
  using Element = float;
  MASKATTN_INLINE static F32 get(F32 packed, int) { return packed; }
};
struct BfloatWeights {
  static constexpr int kGroup = 2;
  MASKATTN_INLINE static F32 get(F32 packed, int i) {
    const I32 pair = (I32)packed;
    return (F32)(i == 0 ? pair << 16 : pair & -65536);
  }
};

template <class Weights>
struct FloatTile {
  // Rows x Vectors vectors of outputs, one chain: groups from `begin` to `end` of the inputs.
  template <int Rows, int Vectors>
  __attribute__((noinline)) static void run(const float* const* x, const float* block, int begin, int end, float* out,
                                            std::ptrdiff_t stride) {
    constexpr int n = kLanes<float>;
    const float* row[Rows];
    MASKATTN_UNROLLED(r, Rows) row[r] = x[r];
    F32 acc[Rows][Vectors];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, Vectors) acc[r][v] = F32{};
    block += static_cast<std::ptrdiff_t>(begin) * kBlockOutputs;
    for (std::ptrdiff_t g = begin; g < end; ++g, block += kBlockOutputs) {
      if constexpr (Rows == 1)
        MASKATTN_UNROLLED(v, Vectors) __builtin_prefetch(reinterpret_cast<const char*>(block + v * n) + kAhead);
      F32 packed[Vectors];
      MASKATTN_UNROLLED(v, Vectors) packed[v] = load(block + v * n);
      MASKATTN_UNROLLED(i, Weights::kGroup) {
        F32 weight[Vectors];
        MASKATTN_UNROLLED(v, Vectors) weight[v] = Weights::get(packed[v], i);
        MASKATTN_UNROLLED(r, Rows) {
          const F32 value = splat(row[r][g * Weights::kGroup + i]);
          MASKATTN_UNROLLED(v, Vectors) acc[r][v] = fma(value, weight[v], acc[r][v]);
        }
      }
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, Vectors) {
        float* to = out + r * stride + v * n;
        store(to, begin == 0 ? acc[r][v] : load(to) + acc[r][v]);
      }
  }
};

template <class Weights>
void multiply_floats(const LinearArgs& args) {
  constexpr int n = kLanes<float>, most = MASKATTN_KEY_VECTORS, chain = 32 / Weights::kGroup;
  const auto* x = reinterpret_cast<const float* const*>(args.x);
  const auto* block = static_cast<const float*>(args.block);
  const int groups = args.inputs / Weights::kGroup;
  for (int begin = 0; begin < groups; begin += chain) {  // outermost: 32 inputs of a block stay in the first-level cache
    const int end = groups - begin < chain ? groups : begin + chain;
    for (int row = 0; row < args.rows; row += kRowGroup) {
      const int count = args.rows - row < kRowGroup ? args.rows - row : kRowGroup;
      for (int v = 0; v < kBlockOutputs / n; v += most)
        TileTable<FloatTile<Weights>>::of(count, most)(x + row, block + v * n, begin, end, args.out + row * args.stride + v * n,
                                                       args.stride);
    }
  }
}

// Two sums of products a row and vector: half as many rows share a load of weights.
inline constexpr int kIntegerRows = kRowGroup / 2;

template <int Rows, int Vectors>
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
    if constexpr (Rows == 1)
      MASKATTN_UNROLLED(v, Vectors) __builtin_prefetch(reinterpret_cast<const char*>(at + v * n) + kAhead);
    I32 weight[Vectors];
    MASKATTN_UNROLLED(v, Vectors) std::memcpy(&weight[v], at + v * n, sizeof(I32));
    MASKATTN_UNROLLED(r, Rows) {
      const I32 upper = I32{} + static_cast<std::int32_t>(bytes[r][2 * g]),
                lower = I32{} + static_cast<std::int32_t>(bytes[r][2 * g + 1]);
      MASKATTN_UNROLLED(v, Vectors) {
        high[r][v] = dot_bytes(high[r][v], upper, weight[v]);
        low[r][v] = dot_bytes(low[r][v], lower, weight[v]);
      }
    }
  }
  MASKATTN_UNROLLED(v, Vectors) {
    I32 sum;
    std::memcpy(&sum, scales.sum + first + v * n, sizeof sum);
    const F32 scale = load(scales.scale + first + v * n);
    MASKATTN_UNROLLED(r, Rows) {
      // q - 32768 = 256 (high - 128) + low.
      const F32 upper = __builtin_convertvector(high[r][v] - (sum << 7), F32), lower = __builtin_convertvector(low[r][v], F32);
      store(out + r * stride + first + v * n, fma(upper, splat(256.f), lower) * (scale * splat(x[r]->scale)));
    }
  }
}

template <int Rows>
__attribute__((noinline)) void integer_rows(const QuantizedRow* const* x, const LinearArgs& args, float* out) {
  const int groups = args.inputs / 4;
  const auto* block = static_cast<const std::int32_t*>(args.block);
  BlockScales scales;
  std::memcpy(&scales, block + static_cast<std::ptrdiff_t>(groups) * kBlockOutputs, sizeof scales);
  for (int first = 0; first < kBlockOutputs; first += MASKATTN_KEY_VECTORS * kLanes<float>)
    integer_tile<Rows, MASKATTN_KEY_VECTORS>(x, block, groups, scales, first, out, args.stride);
}

inline void multiply_integers(const LinearArgs& args) {
  static_assert(kIntegerRows == 3);
  const auto* x = reinterpret_cast<const QuantizedRow* const*>(args.x);
  int row = 0;
  for (; row + 3 <= args.rows; row += 3) integer_rows<3>(x + row, args, args.out + row * args.stride);
  if (args.rows - row == 2) integer_rows<2>(x + row, args, args.out + row * args.stride);
  if (args.rows - row == 1) integer_rows<1>(x + row, args, args.out + row * args.stride);
}

inline void quantize(const float* x, int inputs, QuantizedRow* to) {
  constexpr int n = kLanes<float>;
  F32 largest = {};
  for (int i = 0; i < inputs; i += n) {
    const F32 value = inputs - i < n ? load_first(x + i, inputs - i) : load(x + i);
    largest = vmax(largest, vmax(value, -value));
  }
  const float most = max_lanes<float>(largest);
  to->scale = most / 32767;
  const float factor = most > 0 ? 32767 / most : 0;
  for (int i = 0; i < inputs; i += n) {
    const F32 value = inputs - i < n ? load_first(x + i, inputs - i) : load(x + i);
    const I32 q = __builtin_convertvector(round_even(value * splat(factor)), I32) + 32768;
    for (int j = 0; j < n && i + j < (inputs + 3) / 4 * 4; j += 4) {
      std::uint32_t high = 0, low = 0;
      for (int b = 0; b < 4; ++b) {
        high |= static_cast<std::uint32_t>(q[j + b] >> 8 & 255) << 8 * b;
        low |= static_cast<std::uint32_t>(q[j + b] & 255) << 8 * b;
      }
      to->bytes[(i + j) / 2] = high;
      to->bytes[(i + j) / 2 + 1] = low;
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
