// Powers of two, and the hyperbolic tangent made of them.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// 2^f = 1 + f r(f) for f in [-1/2, 1/2], r minimax: r(f); relative error of 2^f 2.6e-9 (float), 1.8e-17 (double) before rounding.
MASKATTN_INLINE F32 exp2_slope(F32 f) {
  constexpr float c[] = {0x1.62e432p-1f, 0x1.ebfbe2p-3f, 0x1.c6ae72p-5f, 0x1.3b270ep-7f, 0x1.5f7276p-10f, 0x1.470b4ap-13f};
  F32 r = splat<float>(c[5]);
  for (int i = 4; i >= 0; --i) r = fma(r, f, splat<float>(c[i]));
  return r;
}
MASKATTN_INLINE F64 exp2_slope(F64 f) {
  constexpr double c[] = {0.69314718055994569675,   0.24022650695910098007,   0.055504108664790394552,  0.0096181291076070023796,
                          0.0013333558153439964747, 1.540353044157213033e-4,  1.5252727385193868197e-5, 1.3215442675329822143e-6,
                          1.0180647659234138888e-7, 7.0725704128144235096e-9, 4.078071929588336665e-10};
  F64 r = splat<double>(c[10]);
  for (int i = 9; i >= 0; --i) r = fma(r, f, splat<double>(c[i]));
  return r;
}

// x in [-bound, bound]; NaN stays NaN.
template <class T>
MASKATTN_INLINE Vec<T> clamp(Vec<T> x, T bound) {
  return vmin(splat(bound), vmax(splat(-bound), x));
}

// A score with its bias is kept where z is finite: float's lowest number, the "minus infinity" of many masks, would overflow.
template <class T>
inline constexpr T kLargestScore = static_cast<T>(sizeof(T) == 4 ? 1e38 : 1e308);

// 2^(s * factor - m): the integer part is split off the score itself and not off its distance to m, so that m only moves the
// exponent. The factor comes as high + low, for its rounding would show where scores are large. Beyond 2^22 a score's own spacing
// is coarser than f should be; there f is kept small, so that equal scores still get equal weights near 1.
template <class T>
MASKATTN_INLINE Vec<T> weight(Vec<T> s, Vec<T> high, Vec<T> low, Vec<T> m) {
  const Vec<T> n = round_even(s * high);
  const Vec<T> f = clamp<T>(fma(s, low, fma(s, high, -n)), T{1});
  return times_pow2(fma(exp2_slope(f), f, splat<T>(1)), n - m);
}

// cap * tanh(s * scale / cap), with `high` + `low` = 2 log2(e) * scale / cap: tanh |x| = -e / (2 + e), e = 2^n (1 + f r(f)) - 1
// of the negative exponent; grouped as (2^n - 1) + 2^n f r(f), e keeps its digits where x is small.
template <class T>
MASKATTN_INLINE Vec<T> capped(Vec<T> s, Vec<T> high, Vec<T> low, T cap) {
  const Vec<T> negative = vmax(splat<T>(-kLargestScore<T>), s < 0 ? s : -s);
  const Vec<T> n = vmax(splat<T>(-200), round_even(negative * high));  // 2^-200 is nothing beside 1
  const Vec<T> f = clamp<T>(fma(negative, low, fma(negative, high, -n)), T{1});
  const Vec<T> power = times_pow2(splat<T>(1), n), e = fma(power, exp2_slope(f) * f, power - T{1});
  const Vec<T> size = cap * -e / (e + T{2});
  return s < 0 ? -size : size;
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
