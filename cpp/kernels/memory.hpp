// Elements as memory holds them, loaded as vectors of the type that is computed in, and stored again.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

struct Half {  // IEEE 754 binary16
  std::uint16_t bits;
};
struct Bfloat {  // the upper half of a float
  std::uint16_t bits;
};

template <class To, class From>
MASKATTN_INLINE To bits_as(From x) {
  To y;
  static_assert(sizeof x == sizeof y);
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// Portable forms, templates so that an ISA header's overload for the concrete type wins.
template <class V>
MASKATTN_INLINE F32 low_half_to_float(V h) {  // of the lower 16 bits of each lane
  const I32 magnitude = (h & 0x7fff) << 13;
  // A float with the half's exponent is too small by 2^112, subnormals included; infinity and NaN need all exponent bits.
  const I32 finite = bits_as<I32>(bits_as<F32>(magnitude) * 0x1p112f);
  return bits_as<F32>(finite | (magnitude >= 0x0f800000 ? I32{} + 0x7f800000 : I32{}) | (h & 0x8000) << 16);
}
template <class V>
MASKATTN_INLINE I32 zero_extend(V x) {
  return __builtin_convertvector(x, I32);
}
template <class V>
MASKATTN_INLINE F32 half_to_float(V x) {
  return low_half_to_float(zero_extend(x));
}
template <class V>
MASKATTN_INLINE U16 float_to_half(V x) {
  const I32 bits = bits_as<I32>(x), magnitude = bits & 0x7fffffff;
  // Below 2^-14 the sum with 1/2 rounds at the half's last place; elsewhere the mantissa is rounded to even by hand.
  const I32 subnormal = bits_as<I32>(bits_as<F32>(magnitude) + 0.5f) - 0x3f000000;
  const I32 normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  I32 h = magnitude < 0x38800000 ? subnormal : normal;
  h = magnitude >= 0x477ff000 ? I32{} + 0x7c00 : h;
  h = magnitude > 0x7f800000 ? I32{} + 0x7e00 : h;
  return __builtin_convertvector(h | (bits >> 16 & 0x8000), U16);
}
template <class V>
MASKATTN_INLINE F32 bytes_to_float(V x) {
  return __builtin_convertvector(__builtin_convertvector(x, I32), F32);
}
template <class V>
MASKATTN_INLINE U16 float_to_bfloat(V x) {
  const I32 bits = bits_as<I32>(x);
  const I32 rounded = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
  return __builtin_convertvector(((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded) >> 16, U16);
}

template <class V, class S>
MASKATTN_INLINE V load_bits(const S* p, int count) {
  V x = {};
  std::memcpy(&x, p, sizeof(S) * static_cast<std::size_t>(count));
  return x;
}

// The first `count` elements at p, zeros after them; nothing past them is read.
MASKATTN_INLINE F32 widen(const float* p, int count) { return count == kLanes<float> ? load(p) : load_first(p, count); }
MASKATTN_INLINE F32 widen(const Half* p, int count) { return half_to_float(load_bits<U16>(p, count)); }
MASKATTN_INLINE F32 widen(const Bfloat* p, int count) { return bits_as<F32>(zero_extend(load_bits<U16>(p, count)) << 16); }
MASKATTN_INLINE F32 widen(const std::int8_t* p, int count) { return bytes_to_float(load_bits<I8>(p, count)); }

// Element i of each of `lanes` groups of elements that lie in 4 bytes (2 of 16 bits, 4 of 8), the lowest first.
MASKATTN_INLINE F32 part(const float*, I32 groups, int) { return bits_as<F32>(groups); }
MASKATTN_INLINE F32 part(const Half*, I32 groups, int i) { return low_half_to_float(groups >> 16 * i); }
MASKATTN_INLINE F32 part(const Bfloat*, I32 groups, int i) { return bits_as<F32>(i == 0 ? groups << 16 : groups & -65536); }
MASKATTN_INLINE F32 part(const std::int8_t*, I32 groups, int i) {
  return __builtin_convertvector(groups << (24 - 8 * i) >> 24, F32);
}

// What is finite stays finite: the lowest double, which some masks are made of, is not minus infinity.
MASKATTN_INLINE F32 widen(const double* p, int count) {
  constexpr double most = 3.4028234663852886e38;
  F32 x = {};
  for (int i = 0; i < count; ++i) {
    const bool finite = p[i] - p[i] == 0;
    x[i] = static_cast<float>(finite && p[i] > most ? most : finite && p[i] < -most ? -most : p[i]);
  }
  return x;
}

template <class T, class S>
struct Memory {
  MASKATTN_INLINE static Vec<T> load(const S* p, int count) { return widen(p, count); }
};
// Double computes on float, half and integer memory through float, which holds all of them.
template <class S>
struct Memory<double, S> {
  MASKATTN_INLINE static F64 load(const S* p, int count) {
    const F32 narrow = widen(p, count);
    F64 x;
    for (int i = 0; i < kLanes<double>; ++i) x[i] = narrow[i];
    return x;
  }
};
template <>
struct Memory<double, double> {
  MASKATTN_INLINE static F64 load(const double* p, int count) {
    return count == kLanes<double> ? MASKATTN_ISA::load(p) : load_first(p, count);
  }
};

// Stores the first `count` lanes, rounded to nearest.
MASKATTN_INLINE void narrow(F32 x, int count, float* to) { std::memcpy(to, &x, sizeof(float) * static_cast<std::size_t>(count)); }
MASKATTN_INLINE void narrow(F32 x, int count, Half* to) {
  const U16 bits = float_to_half(x);
  std::memcpy(to, &bits, sizeof(Half) * static_cast<std::size_t>(count));
}
MASKATTN_INLINE void narrow(F32 x, int count, Bfloat* to) {
  const U16 bits = float_to_bfloat(x);
  std::memcpy(to, &bits, sizeof(Bfloat) * static_cast<std::size_t>(count));
}
MASKATTN_INLINE void narrow(F64 x, int count, double* to) {
  std::memcpy(to, &x, sizeof(double) * static_cast<std::size_t>(count));
}
template <class S>
MASKATTN_INLINE void narrow(F64 x, int count, S* to) {
  F32 y = {};
  for (int i = 0; i < count; ++i) y[i] = static_cast<float>(x[i]);
  narrow(y, count, to);
}

// Fetches rows into the cache, a few lines at a time: in even shares, because a prefetch that the memory system has no room for
// is dropped, and in the order of their addresses, which is what the hardware's own prefetchers follow. A prefetch never
// faults, and what it fetches does not count as read.
struct Prefetcher {
  const char* row;
  std::ptrdiff_t stride;
  int row_bytes, at = 0;

  MASKATTN_INLINE void lines(int count) {
    for (int i = 0; i < count; ++i) {
      __builtin_prefetch(row + at);
      at += 64;
      if (at >= row_bytes) {
        at = 0;
        row += stride;
      }
    }
  }
};

// The leaf functions of the table.

template <class T, class S>
void read_row(const void* from, int count, T* to) {
  constexpr int n = kLanes<T>;
  const S* p = static_cast<const S*>(from);
  for (int i = 0; i < count; i += n) {
    const int left = count - i < n ? count - i : n;
    const Vec<T> x = Memory<T, S>::load(p + i, left);
    std::memcpy(to + i, &x, sizeof(T) * static_cast<std::size_t>(left));
  }
}

template <class T, class S>
void write_row(const T* from, int count, void* to) {
  constexpr int n = kLanes<T>;
  S* p = static_cast<S*>(to);
  for (int i = 0; i < count; i += n) {
    const int left = count - i < n ? count - i : n;
    narrow(left == n ? load(from + i) : load_first(from + i, left), left, p + i);
  }
}

template <class T, class S>
void write_quotients(const T* from, int count, T factor, T divisor, void* to) {
  constexpr int n = kLanes<T>;
  S* p = static_cast<S*>(to);
  int i = 0;
  for (; i + n <= count; i += n) narrow(load(from + i) * factor / divisor + T{0}, n, p + i);
  if (i < count) narrow(load_first(from + i, count - i) * factor / divisor + T{0}, count - i, p + i);
}

// The factor of a row of integers; other elements mean themselves.
template <class S>
inline constexpr bool kScaled = sizeof(S) == 1;

inline constexpr int kPieceBits = 4;
static_assert(kPiece == 1 << kPieceBits);
template <class S>
MASKATTN_INLINE const S* row_at(const PieceMemory& m, int row) {
  return static_cast<const S*>(m.piece[row >> kPieceBits]) + (row & (kPiece - 1)) * m.stride;
}
// Rows of `row_bytes` bytes from `row` of what comes kPiecesAhead later.
template <class S>
MASKATTN_INLINE Prefetcher prefetch_later(const PieceMemory& m, int row, int elements) {
  constexpr int bytes = sizeof(S);
  return {reinterpret_cast<const char*>(row_at<S>(m, row + kPiecesAhead * kPiece)), m.stride * bytes, elements * bytes};
}
MASKATTN_INLINE float scale_at(const PieceMemory& m, int row) {
  return m.scales[row >> kPieceBits][(row & (kPiece - 1)) * m.scale_stride];
}

MASKATTN_INLINE F32 load_scales(const PieceMemory& m, int first_row) {
  if (m.scale_stride == 1) return load<float>(&m.scales[first_row >> kPieceBits][first_row & (kPiece - 1)]);
  F32 x;
  for (int i = 0; i < kLanes<float>; ++i) x[i] = scale_at(m, first_row + i);
  return x;
}

template <class T, class S>
MASKATTN_INLINE Vec<T> load_scaled(const S* p, const PieceMemory& m, int row, int count) {
  const Vec<T> x = Memory<T, S>::load(p, count);
  if constexpr (kScaled<S>)
    return x * static_cast<T>(scale_at(m, row));
  else
    return x;
}

template <class T, class S>
void read_values(const PieceMemory& m, MaskWord seen, int dim, int columns, T* to) {
  constexpr int n = kLanes<T>;
  for (; seen; seen &= seen - 1) {
    const int key = __builtin_ctzll(seen);
    const S* from = row_at<S>(m, key);
    T* row = to + key * columns;
    int c = 0;
    for (; c + n <= dim; c += n) store<T>(row + c, load_scaled<T>(from + c, m, key, n));
    for (; c < columns; c += n) store<T>(row + c, c < dim ? load_scaled<T>(from + c, m, key, dim - c) : Vec<T>{});
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
