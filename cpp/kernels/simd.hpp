// Vectors of the width that the instruction set's header chose (MASKATTN_VECTOR_BYTES), and what kernels do with them.
// These are the portable forms; an ISA header overloads the few that it does better, before a kernel is defined.
// Everything lives in an anonymous namespace and includes <cst*> only: code compiled with one set's flags must not be merged
// by the linker into another set's path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// The one symbol of an object file: maskattn_<what>_<instruction set>() gives the address of a constant.
#define MASKATTN_JOIN2(a, b) a##b
#define MASKATTN_JOIN(a, b) MASKATTN_JOIN2(a, b)
#define MASKATTN_EXPORT(what, Type, constant)                                                                                \
  extern "C" __attribute__((visibility("hidden"))) const maskattn::Type* MASKATTN_JOIN(maskattn_##what##_, MASKATTN_ISA)() { \
    return &maskattn::MASKATTN_ISA::constant;                                                                                \
  }

namespace maskattn::MASKATTN_ISA {
namespace {

// g++ 12 mishandles vector_size(N) with N a template parameter, hence the macro.
typedef float F32 __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));
typedef double F64 __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));
typedef std::int32_t I32 __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));
typedef std::int64_t I64 __attribute__((vector_size(MASKATTN_VECTOR_BYTES)));
typedef std::uint16_t U16 __attribute__((vector_size(MASKATTN_VECTOR_BYTES / 2)));  // as many lanes as F32
typedef std::int8_t I8 __attribute__((vector_size(MASKATTN_VECTOR_BYTES / 4)));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using V = F32;
  using I = I32;
  using Lane = std::int32_t;
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct VectorOf<double> {
  using V = F64;
  using I = I64;
  using Lane = std::int64_t;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};
template <class V>
struct ElementOf;
template <>
struct ElementOf<F32> {
  using T = float;
};
template <>
struct ElementOf<F64> {
  using T = double;
};
template <class T>
using Vec = typename VectorOf<T>::V;
template <class T>
inline constexpr int kLanes = MASKATTN_VECTOR_BYTES / sizeof(T);

#define MASKATTN_INLINE inline __attribute__((always_inline))
// Loops over register tiles unroll fully, or the tile would live on the stack.
#define MASKATTN_UNROLLED(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); ++i)

template <class T>
MASKATTN_INLINE Vec<T> load(const T* p) {
  Vec<T> x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class T>
MASKATTN_INLINE void store(T* p, Vec<T> x) {
  std::memcpy(p, &x, sizeof x);
}
// The first `count` elements at p, zeros after them; nothing past them is read.
template <class T>
MASKATTN_INLINE Vec<T> load_first(const T* p, int count) {
  Vec<T> x = {};
  std::memcpy(&x, p, sizeof(T) * static_cast<std::size_t>(count));
  return x;
}
template <class T>
MASKATTN_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0 keeps the sign of -0 and compiles to a broadcast
}

// The portable forms are templates, so that an overload for the concrete vector type wins. Where the set has no fused
// multiply-add, a * b + c is rounded twice, always: kernels are compiled with -ffp-contract=off.
template <class V>
MASKATTN_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
// b where either is NaN.
template <class V>
MASKATTN_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
template <class V>
MASKATTN_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}
MASKATTN_INLINE float round_one(float x) { return __builtin_rintf(x); }
MASKATTN_INLINE double round_one(double x) { return __builtin_rint(x); }
template <class V>
MASKATTN_INLINE V round_even(V x) {
  V r;
  for (std::size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) r[i] = round_one(x[i]);
  return r;
}
// x where the lane's bit is set, else `otherwise`.
template <class V>
MASKATTN_INLINE V keep(V x, std::uint64_t bits, V otherwise) {
  using T = typename ElementOf<V>::T;
  using Lane = typename VectorOf<T>::Lane;
  typename VectorOf<T>::I lane_bit;
  for (int i = 0; i < kLanes<T>; ++i) lane_bit[i] = Lane{1} << i;
  return (lane_bit & static_cast<Lane>(bits)) != 0 ? x : otherwise;
}

// Bit i: whether lane i of x and y are equal.
template <class V>
MASKATTN_INLINE std::uint64_t equal_bits(V x, V y) {
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < sizeof(V) / sizeof(x[0]); ++i) bits |= std::uint64_t{x[i] == y[i]} << i;
  return bits;
}

// p * 2^k for p in [0.7, 1.42] and an integer k <= 0; zero where k is below the normal range (no subnormal weights: they are
// slow on some machines), NaN where k is NaN.
template <class V>
MASKATTN_INLINE V times_pow2(V p, V k) {
  using T = typename ElementOf<V>::T;
  using Info = VectorOf<T>;
  const V lowest = splat<T>(static_cast<T>(1 - Info::exponent_bias));
  const V clamped = k > lowest ? k : lowest;
  typename Info::I exponent = __builtin_convertvector(clamped, typename Info::I) + Info::exponent_bias;
  exponent <<= Info::mantissa_bits;
  V power;
  std::memcpy(&power, &exponent, sizeof power);
  return k <= lowest ? V{} : p * power + (k - k);  // k - k is 0, or NaN where clamping would have lost it
}

// Reductions across lanes: halves are combined, in an order that the width alone decides.
template <class T, int Half, class Combine>
MASKATTN_INLINE T reduce_lanes(Vec<T> x, const Combine& combine) {
  if constexpr (Half == 0) {
    return x[0];
  } else {
    Vec<T> upper = x;
#if defined(__clang__)
    for (int i = 0; i < Half; ++i) upper[i] = x[i + Half];
#else
    typename VectorOf<T>::I lane;
    for (int i = 0; i < kLanes<T>; ++i) lane[i] = (i + Half) % kLanes<T>;
    upper = __builtin_shuffle(x, lane);
#endif
    return reduce_lanes<T, Half / 2>(combine(x, upper), combine);
  }
}
template <class T>
MASKATTN_INLINE T sum_lanes(Vec<T> x) {
  return reduce_lanes<T, kLanes<T> / 2>(x, [](Vec<T> a, Vec<T> b) { return a + b; });
}
template <class T>
MASKATTN_INLINE T max_lanes(Vec<T> x) {
  return reduce_lanes<T, kLanes<T> / 2>(x, [](Vec<T> a, Vec<T> b) { return a > b ? a : b; });
}

// Transposes a square of lanes x lanes in registers: log2(lanes) rounds, each interleaving row i with row i + lanes / 2.
template <class T>
MASKATTN_INLINE void transpose(Vec<T> (&x)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  typename VectorOf<T>::I low, high;
  for (int i = 0; i < n; ++i) {
    low[i] = i / 2 + (i % 2) * n;
    high[i] = low[i] + n / 2;
  }
  for (int round = 1; round < n; round *= 2) {
    Vec<T> y[n];
    for (int i = 0; i < n / 2; ++i) {
#if defined(__clang__)
      for (int lane = 0; lane < n; ++lane) {
        y[2 * i][lane] = low[lane] < n ? x[i][low[lane]] : x[i + n / 2][low[lane] - n];
        y[2 * i + 1][lane] = high[lane] < n ? x[i][high[lane]] : x[i + n / 2][high[lane] - n];
      }
#else
      y[2 * i] = __builtin_shuffle(x[i], x[i + n / 2], low);
      y[2 * i + 1] = __builtin_shuffle(x[i], x[i + n / 2], high);
#endif
    }
    for (int i = 0; i < n; ++i) x[i] = y[i];
  }
}

// x[d] = element d of the lanes rows at p, `stride` apart.
template <class T>
MASKATTN_INLINE void load_transposed(const T* p, std::ptrdiff_t stride, Vec<T> (&x)[kLanes<T>]) {
  for (int i = 0; i < kLanes<T>; ++i) x[i] = load<T>(p + i * stride);
  transpose<T>(x);
}

// words[i] = bytes 4 i to 4 i + 3 of each of the lanes rows at p, `stride` bytes apart.
template <class V>
MASKATTN_INLINE void load_words(const char* p, std::ptrdiff_t stride, V (&words)[4]) {
  constexpr int n = kLanes<float>;
  if constexpr (n == 4) {
    for (int i = 0; i < n; ++i) std::memcpy(&words[i], p + i * stride, sizeof words[i]);
    transpose<float>(words);
  } else {
    for (int lane = 0; lane < n; ++lane)
      for (int i = 0; i < 4; ++i) std::memcpy(reinterpret_cast<float*>(&words[i]) + lane, p + lane * stride + 4 * i, 4);
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
