// Rows of activations times a block of packed weights, as integers of 8 bits or twice 8.
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

// Two sums of products a row and vector of 16-bit activations: half as many rows share a load of weights.
template <int Bits>
inline constexpr int kIntegerRows = Bits == 8 ? kRowGroup : kRowGroup / 2;

// What sums of products with high and low bytes stand for, of outputs from `first` on.
MASKATTN_INLINE F32 scaled(I32 high, I32 low, const BlockScales& scales, int first, const QuantizedRow& row) {
  I32 sum;
  std::memcpy(&sum, scales.sum + first, sizeof sum);
  // q - 256 zero = 256 (high - zero) + low.
  const F32 upper = __builtin_convertvector(high - sum * row.zero, F32), lower = __builtin_convertvector(low, F32);
  return fma(upper, splat(256.f), lower) * (load(scales.scale + first) * splat(row.scale));
}

template <int Bits, int Rows, int Vectors, bool Fetch>
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
      const I32 upper = I32{} + static_cast<std::int32_t>(bytes[r][g]);
      MASKATTN_UNROLLED(v, Vectors) high[r][v] = dot_bytes(high[r][v], upper, weight[v]);
      if constexpr (Bits == 16) {
        const I32 lower = I32{} + static_cast<std::int32_t>(bytes[r][groups + g]);
        MASKATTN_UNROLLED(v, Vectors) low[r][v] = dot_bytes(low[r][v], lower, weight[v]);
      }
    }
  }
  MASKATTN_UNROLLED(v, Vectors)
    MASKATTN_UNROLLED(r, Rows)
      store(out + r * stride + first + v * n, scaled(high[r][v], low[r][v], scales, first + v * n, *x[r]));
}

// Rows rows, as products of Bits bits.
struct IntegerRows {
  using Row = QuantizedRow;
  template <int Bits, int Rows, bool Fetch>
  __attribute__((noinline)) static void run(const QuantizedRow* const* x, const LinearArgs& args, float* out) {
    const int groups = args.inputs / 4;
    const auto* block = static_cast<const std::int32_t*>(args.block);
    BlockScales scales;
    std::memcpy(&scales, block + static_cast<std::ptrdiff_t>(groups) * kBlockOutputs, sizeof scales);
    for (int first = 0; first < kBlockOutputs; first += MASKATTN_KEY_VECTORS * kLanes<float>)
      integer_tile<Bits, Rows, MASKATTN_KEY_VECTORS, Fetch>(x, block, groups, scales, first, out, args.stride);
  }
};

template <class Row>
bool all_of_8_bits(const Row* const* x, int rows) {
  for (int r = 0; r < rows; ++r)
    if (x[r]->bits != 8) return false;
  return true;
}

// Kernel::run for the rows from `row` on, kIntegerRows of them or what is left.
template <class Kernel, int Bits, int Rows = kIntegerRows<Bits>>
MASKATTN_INLINE void integer_rows(const LinearArgs& args, int row, int rows) {
  if constexpr (Rows > 1)
    if (rows < Rows) return integer_rows<Kernel, Bits, Rows - 1>(args, row, rows);
  const auto* x = reinterpret_cast<const typename Kernel::Row* const*>(args.x) + row;
  // Fetches what follows in memory, for the first rows.
  (row == 0 ? Kernel::template run<Bits, Rows, true> : Kernel::template run<Bits, Rows, false>)(x, args,
                                                                                                args.out + row * args.stride);
}

template <class Kernel>
void multiply_integer_rows(const LinearArgs& args) {
  const auto* x = reinterpret_cast<const typename Kernel::Row* const*>(args.x);
  for (int first = 0; first < args.rows; first += kRowGroup) {
    const int end = args.rows - first < kRowGroup ? args.rows : first + kRowGroup;
    if (all_of_8_bits(x + first, end - first))
      integer_rows<Kernel, 8>(args, first, end - first);
    else
      for (int row = first; row < end; row += kIntegerRows<16>) integer_rows<Kernel, 16>(args, row, end - row);
  }
}

inline void multiply_integers(const LinearArgs& args) { multiply_integer_rows<IntegerRows>(args); }

typedef std::uint8_t Bytes __attribute__((vector_size(MASKATTN_VECTOR_BYTES / 4)));  // as many as floats

// What is asked of a row before it is rounded.
struct RowRange {
  float least, most;  // with zero between them
  float squares;      // their sum
  bool finite;

  float largest() const { return most > -least ? most : -least; }
};

MASKATTN_INLINE RowRange range_of(const float* x, int inputs) {
  constexpr int n = kLanes<float>;
  F32 least = {}, most = {}, squares = {}, wrong = {};
  for (int i = 0; i < inputs; i += n) {
    const F32 value = load_up_to(x + i, inputs - i);
    least = vmin(least, value);
    most = vmax(most, value);
    squares = fma(value, value, squares);
    wrong += value - value;
  }
  return {-max_lanes<float>(-least), max_lanes<float>(most), sum_lanes<float>(squares), sum_lanes<float>(wrong) == 0};
}

// Whether rounding to multiples of `step` loses at most kSmallError of a row. Squares that float32 does not hold say nothing.
MASKATTN_INLINE bool is_small(float step, const RowRange& range, int inputs) {
  const float all = 12 * kSmallError * kSmallError * range.squares;
  return range.least == range.most || (range.squares > 1e-30f && range.squares < 1e38f && step * step * inputs <= all);
}

constexpr float kSmallestStep = 1e-36f;  // whose inverse is finite; below, all is rounded to zero

// q = min(round(x / step) + zero, most) * 2^shift.
struct Rounding {
  float step;
  int zero, most, shift;
};

// The bytes of all q go to `row`, each vector of q to `take`.
template <class Row, class Take>
MASKATTN_INLINE void round_row(const float* x, int inputs, int padded, bool finite, const Rounding& to, Row* row,
                               const Take& take) {
  constexpr int n = kLanes<float>;
  // NaN and infinity have no integers: all that the row makes is NaN then.
  row->scale = finite ? to.step / static_cast<float>(1 << to.shift) : __builtin_nanf("");
  row->bits = to.shift == 0 ? 16 : 8;
  const F32 factor = splat(to.step > kSmallestStep ? 1 / to.step : 0);
  for (int i = 0; i < padded; i += n) {
    const F32 value = finite && i < inputs ? load_up_to(x + i, inputs - i) : F32{};
    const F32 rounded = vmin(round_even(value * factor) + splat(static_cast<float>(to.zero)), splat(static_cast<float>(to.most)));
    const I32 q = __builtin_convertvector(rounded, I32) << to.shift;
    take(i, q);
    const Bytes high = __builtin_convertvector((q >> 8) & 255, Bytes), low = __builtin_convertvector(q & 255, Bytes);
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
  const RowRange range = range_of(x, inputs);
  const auto row = static_cast<QuantizedRow*>(to);
  const float step = (range.most - range.least) / 255;
  Rounding rounding{range.largest() / 32767, 32768, 65535, 0};
  if (is_small(step, range, inputs))
    rounding = {step, static_cast<int>(__builtin_rintf(step > kSmallestStep ? -range.least / step : 0)), 255, 8};
  row->zero = rounding.zero << rounding.shift >> 8;
  round_row(x, inputs, padded, range.finite, rounding, row, [](int, I32) {});
}

inline void quantize_signed(const float* x, int inputs, int padded, void* to) {
  const RowRange range = range_of(x, inputs);
  const float most = range.largest();
  const auto row = static_cast<SignedRow*>(to);
  std::uint32_t *sums = row->sums(padded), sum = 0;
  sums[0] = 0;
  static_assert(kScaleGroup % kLanes<float> == 0);
  const Rounding rounding =
      is_small(most / 127, range, inputs) ? Rounding{most / 127, 0, 127, 8} : Rounding{most / 32767, 0, 32767, 0};
  round_row(x, inputs, padded, range.finite, rounding, row, [&](int i, I32 q) {
    for (int lane = 0; lane < kLanes<float>; ++lane) sum += static_cast<std::uint32_t>(q[lane]);
    sums[i / kScaleGroup + 1] = sum;
  });
}

// Of one group: Rows x Vectors vectors of outputs from `first` on, times the scales, added to `out`; of 8 bits in units of 256.
template <int Bits, int Rows, int Vectors, bool Zeros, bool Fetch>
MASKATTN_INLINE void nibble_tile(const SignedRow* const* x, const LinearArgs& args, const std::int32_t* group, int begin,
                                 int first, float* out) {
  constexpr int n = kLanes<float>;
  const std::uint32_t* bytes[Rows];
  std::int32_t sums[Rows];
  I32 high[Rows][Vectors], low[Rows][Vectors];
  MASKATTN_UNROLLED(r, Rows) {
    bytes[r] = x[r]->bytes + begin / 4;
    sums[r] = x[r]->sum(args.inputs, begin, args.group) >> (Bits == 8 ? 8 : 0);
    MASKATTN_UNROLLED(v, Vectors) {
      const I32 first_sum = I32{} + (Zeros ? 0 : -8 * sums[r]);
      high[r][v] = Bits == 8 ? first_sum : I32{};
      low[r][v] = Bits == 8 ? I32{} : first_sum;
    }
  }
  const std::ptrdiff_t low_bytes = args.inputs / 4;
  const std::int32_t* at = group + first;
  for (int g = 0; g < args.group / 8; ++g, at += kBlockOutputs) {
    if constexpr (Fetch)
      MASKATTN_UNROLLED(v, Vectors) __builtin_prefetch(reinterpret_cast<const char*>(at + v * n) + kAhead);
    // The first four inputs, then the others: what both need of the weights would leave no registers for the sums.
    MASKATTN_UNROLLED(half, 2) {
      I32 weight[Vectors];
      MASKATTN_UNROLLED(v, Vectors) {
        std::memcpy(&weight[v], at + v * n, sizeof(I32));
        weight[v] = weight[v] >> 4 * half & 0x0f0f0f0f;
      }
      MASKATTN_UNROLLED(r, Rows) {
        const I32 upper = I32{} + static_cast<std::int32_t>(bytes[r][2 * g + half]);
        MASKATTN_UNROLLED(v, Vectors) high[r][v] = dot_bytes(high[r][v], weight[v], upper);
        if constexpr (Bits == 16) {
          const I32 lower = I32{} + static_cast<std::int32_t>(bytes[r][low_bytes + 2 * g + half]);
          MASKATTN_UNROLLED(v, Vectors) low[r][v] = dot_bytes(low[r][v], lower, weight[v]);
        }
      }
    }
  }
  const auto* scales = reinterpret_cast<const Half*>(group + args.group / 8 * kBlockOutputs) + first;
  MASKATTN_UNROLLED(v, Vectors) {
    const F32 scale = widen(scales + v * n, n);
    MASKATTN_UNROLLED(r, Rows) {
      F32 sum = __builtin_convertvector(Bits == 8 ? high[r][v] : (high[r][v] << 8) + low[r][v], F32);
      if constexpr (Zeros) sum = fma(splat(-static_cast<float>(sums[r])), widen(scales + kBlockOutputs + v * n, n), sum);
      float* to = out + r * args.stride + first + v * n;
      store(to, begin == 0 ? sum * scale : fma(sum, scale, load(to)));
    }
  }
}

template <bool Zeros>
struct NibbleRows {
  using Row = SignedRow;
  template <int Bits, int Rows, bool Fetch>
  __attribute__((noinline)) static void run(const SignedRow* const* x, const LinearArgs& args, float* out) {
    const std::ptrdiff_t group_words = args.group / 8 * kBlockOutputs + (Zeros ? 2 : 1) * kBlockOutputs / 2;
    const auto* group = static_cast<const std::int32_t*>(args.block);
    for (int begin = 0; begin < args.inputs; begin += args.group, group += group_words)
      for (int first = 0; first < kBlockOutputs; first += MASKATTN_KEY_VECTORS * kLanes<float>)
        nibble_tile<Bits, Rows, MASKATTN_KEY_VECTORS, Zeros, Fetch>(x, args, group, begin, first, out);
    MASKATTN_UNROLLED(r, Rows)
      for (int o = 0; o < kBlockOutputs; o += kLanes<float>) {
        float* to = out + r * args.stride + o;
        store(to, load(to) * splat(Bits == 8 ? 256 * x[r]->scale : x[r]->scale));
      }
  }
};

template <bool Zeros>
void multiply_nibbles(const LinearArgs& args) {
  multiply_integer_rows<NibbleRows<Zeros>>(args);
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
