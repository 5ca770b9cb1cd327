// What layers do between products: norms and activations, of a row.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// The first `count` lanes at p, and zeros.
MASKATTN_INLINE F32 load_up_to(const float* p, int count) { return count < kLanes<float> ? load_first(p, count) : load(p); }
MASKATTN_INLINE void store_up_to(float* p, int count, F32 x) {
  if (count < kLanes<float>)
    std::memcpy(p, &x, sizeof(float) * static_cast<std::size_t>(count));
  else
    store(p, x);
}

// The sum over a row of term(x), where nothing past the row counts; in four sums, so that additions do not wait for each other.
template <class Term>
MASKATTN_INLINE float sum_of_row(const float* x, int width, const Term& term) {
  constexpr int n = kLanes<float>;
  F32 sum[4] = {};
  int i = 0;
  for (; i + 4 * n <= width; i += 4 * n)
    MASKATTN_UNROLLED(j, 4) sum[j] += term(load(x + i + j * n));
  for (; i < width; i += n) {
    const int left = width - i;
    const F32 value = term(load_up_to(x + i, left));
    sum[0] += left < n ? keep(value, (std::uint64_t{1} << left) - 1, F32{}) : value;
  }
  return sum_lanes<float>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

inline void layer_norm(const NormArgs& a) {
  constexpr int n = kLanes<float>;
  const float width = static_cast<float>(a.width);
  const F32 mean = splat(sum_of_row(a.x, a.width, [](F32 x) { return x; }) / width);
  const float variance = sum_of_row(a.x, a.width, [mean](F32 x) { return (x - mean) * (x - mean); }) / width;
  const F32 scale = splat(1 / __builtin_sqrtf(variance + a.eps));
  for (int i = 0; i < a.width; i += n) {
    const int left = a.width - i;
    const F32 normed = (load_up_to(a.x + i, left) - mean) * scale, weight = load_up_to(a.weight + i, left);
    store_up_to(a.out + i, left, a.bias ? fma(normed, weight, load_up_to(a.bias + i, left)) : normed * weight);
  }
}

inline void rms_norm(const NormArgs& a) {
  constexpr int n = kLanes<float>;
  const float square = sum_of_row(a.x, a.width, [](F32 x) { return x * x; }) / static_cast<float>(a.width);
  const F32 scale = splat(1 / __builtin_sqrtf(square + a.eps));
  for (int i = 0; i < a.width; i += n) {
    const int left = a.width - i;
    store_up_to(a.out + i, left, load_up_to(a.x + i, left) * scale * load_up_to(a.weight + i, left));
  }
}

inline constexpr float kLog2eHigh = 0x1.715476p+0f, kLog2eLow = 0x1.4ae0cp-26f;

// e^x for x <= 0, 0 below 2^-126.
MASKATTN_INLINE F32 exponential(F32 x) {
  const F32 bounded = vmax(splat(-200.f), x);
  return weight<float>(bounded, splat(kLog2eHigh), splat(kLog2eLow), F32{});
}
MASKATTN_INLINE F32 hyperbolic_tangent(F32 x) { return capped<float>(x, splat(2 * kLog2eHigh), splat(2 * kLog2eLow), 1.f); }
// 1 / (1 + e^-x).
MASKATTN_INLINE F32 logistic(F32 x) {
  const F32 decay = exponential(x < 0 ? x : -x);
  return (x < 0 ? decay : splat(1.f)) / (1.f + decay);
}
// Within 2e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, formula 7.1.26.
MASKATTN_INLINE F32 error_function(F32 x) {
  const F32 size = x < 0 ? -x : x, t = 1.f / (1.f + 0.3275911f * size);
  constexpr float c[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  F32 p = splat(1.061405429f);
  MASKATTN_UNROLLED(i, 4) p = fma(p, t, splat(c[i]));
  const F32 rest = 1.f - p * t * exponential(-size * size);
  return x < 0 ? -rest : rest;
}

inline BlockSummary summarize(const float* x, bool with_sum) {
  constexpr int n = kLanes<float>;
  F32 most = splat(-__builtin_inff());
  for (int i = 0; i < kBlockOutputs; i += n) most = vmax(load(x + i), most);  // of NaN the second
  BlockSummary summary{max_lanes<float>(most), 0, 0};
  if (!with_sum || !(summary.maximum > -1e30f)) return summary;
  summary.exponent = round_one(summary.maximum * kLog2eHigh);
  F32 sum = {};
  for (int i = 0; i < kBlockOutputs; i += n)
    sum += weight<float>(vmax(splat(-1e30f), load(x + i)), splat(kLog2eHigh), splat(kLog2eLow), splat(summary.exponent));
  summary.sum = sum_lanes<float>(sum);
  return summary;
}

struct Relu {
  static MASKATTN_INLINE F32 of(F32 x) { return x > 0 ? x : F32{}; }
};
struct Silu {
  static MASKATTN_INLINE F32 of(F32 x) { return x * logistic(x); }
};
struct Gelu {
  static MASKATTN_INLINE F32 of(F32 x) { return 0.5f * x * (1.f + error_function(x * 0x1.6a09e6p-1f)); }
};
struct GeluTanh {
  static MASKATTN_INLINE F32 of(F32 x) {
    return 0.5f * x * (1.f + hyperbolic_tangent(0x1.988454p-1f * (x + 0.044715f * x * x * x)));
  }
};
struct QuickGelu {
  static MASKATTN_INLINE F32 of(F32 x) { return x * logistic(1.702f * x); }
};
struct Tanh {
  static MASKATTN_INLINE F32 of(F32 x) { return hyperbolic_tangent(x); }
};

struct Identity {
  static MASKATTN_INLINE F32 of(F32 x) { return x; }
};

#ifdef MASKATTN_BFLOAT_PAIRS
// `count` numbers of two vectors, as bfloat16 numbers.
MASKATTN_INLINE void store_pairs(void* to, int count, F32 first, F32 second) {
  const I32 pairs = round_to_bfloats(first, second);
  const int groups = count < 2 * kLanes<float> ? (count + 1) / 2 : kLanes<float>;
  std::memcpy(to, &pairs, sizeof(std::int32_t) * static_cast<std::size_t>(groups));
}

inline void to_pairs(const float* x, int inputs, int, void* to) {
  constexpr int n = kLanes<float>;
  for (int i = 0; i < inputs; i += 2 * n) {
    const int left = inputs - i;
    store_pairs(static_cast<std::int32_t*>(to) + i / 2, left, load_up_to(x + i, left),
                left > n ? load_up_to(x + i + n, left - n) : F32{});
  }
}
#endif

template <class Function>
void finish_row(const FinishArgs& a) {
  constexpr int n = kLanes<float>;
  const auto value = [&a](int i) {
    const int left = a.count - i;
    F32 x = load_up_to(a.x + i, left);
    if (a.bias) x += load_up_to(a.bias + i, left);
    x = Function::of(x);
    if (!a.factor) return x;
    const F32 factor = load_up_to(a.factor + i, left);
    return x * (a.factor_bias ? factor + load_up_to(a.factor_bias + i, left) : factor);
  };
#ifdef MASKATTN_BFLOAT_PAIRS
  if (a.rounded) {
    for (int i = 0; i < a.count; i += 2 * n)
      store_pairs(static_cast<std::int32_t*>(a.out) + i / 2, a.count - i, value(i), i + n < a.count ? value(i + n) : F32{});
    return;
  }
#endif
  auto* const out = static_cast<float*>(a.out);
  for (int i = 0; i < a.count; i += n)
    store_up_to(out + i, a.count - i, a.added ? load_up_to(out + i, a.count - i) + value(i) : value(i));
}

inline void finish(const FinishArgs& args) {
  static constexpr decltype(&finish_row<Relu>) functions[] = {finish_row<Relu>,     finish_row<Silu>,      finish_row<Gelu>,
                                                              finish_row<GeluTanh>, finish_row<QuickGelu>, finish_row<Tanh>,
                                                              finish_row<Identity>};
  static_assert(sizeof functions == sizeof functions[0] * (kActivations + 1));
  functions[args.function < 0 ? kActivations : args.function](args);
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
