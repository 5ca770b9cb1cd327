// From the scores of a block in one segment to weights 2^(z - m), with m the segment's own rounded maximum.
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

template <class T>
void cap(const CapArgs<T>& a) {
  const Vec<T> high = splat(a.factor_hi), low = splat(a.factor_lo);
  for (int row = 0; row < a.rows; ++row)
    for (int panel = 0; panel < kPanels; ++panel) {
      if (a.mask && a.mask[row * kPanels + panel] == 0) continue;
      T* s = a.scores + row * kSegment + panel * kPanel;
      for (int i = 0; i < kPanel; i += kLanes<T>) store<T>(s + i, capped<T>(load<T>(s + i), high, low, a.cap));
    }
}

// `group`: the keys of each panel that the row or a neighbour that shares its loads sees; vectors of other keys are left as they
// are.
template <class T, bool Masked, bool Biased>
void softmax_row(const SoftmaxArgs<T>& a, int row, const MaskWord* group) {
  constexpr int n = kLanes<T>;
  const Vec<T> high = splat(a.log2_hi), low = splat(a.log2_lo), hidden = splat(-static_cast<T>(__builtin_inff()));
  constexpr MaskWord kAll = ~MaskWord{0}, lanes = kAll >> (64 - n);
  T* s = a.scores + row * kSegment;
  const T* bias = Biased ? a.bias[row] : nullptr;
  const MaskWord* words = Masked ? a.mask + row * kPanels : nullptr;

  Vec<T> top = hidden;
  for (int panel = 0; panel < kPanels; ++panel) {
    const MaskWord word = Masked ? words[panel] : kAll;
    if (word == 0) continue;
    for (int i = 0; i < kPanel; i += n) {
      if (Masked && (word >> i & lanes) == 0) continue;
      T* at = s + panel * kPanel + i;
      Vec<T> x = load<T>(at);
      if (Biased)
        x = clamp<T>(fma(x, splat(a.scale_lo), fma(x, splat(a.scale_hi), load<T>(bias + panel * kPanel + i))), kLargestScore<T>);
      if (Masked && word != kAll) x = keep(x, word >> i, hidden);
      if (Biased || (Masked && word != kAll)) store<T>(at, x);
      top = vmax(x, top);  // passes over NaN, which the weights keep
    }
  }
  const T peak = max_lanes<T>(top);
  const bool seen = peak > -static_cast<T>(__builtin_inff());
  const T m = seen ? round_one(peak * a.log2_hi) : T{0};

  Vec<T> sum = {};
  for (int panel = 0; panel < kPanels; ++panel) {
    const MaskWord word = Masked ? words[panel] : kAll;
    if (Masked && group[panel] == 0) continue;
    for (int i = 0; i < kPanel; i += n) {
      if (Masked && (group[panel] >> i & lanes) == 0) continue;
      T* at = s + panel * kPanel + i;
      if (Masked && (word >> i & lanes) == 0) {
        store<T>(at, Vec<T>{});
        continue;
      }
      Vec<T> p = weight<T>(load<T>(at), high, low, splat(m));
      if (Masked && word != kAll) p = keep(p, word >> i, Vec<T>{});  // a scale of 0 makes NaN of a hidden score
      store<T>(at, p);
      sum += p;
    }
  }
  a.sum[row] = sum_lanes<T>(sum);
  a.maximum[row] = a.sum[row] == 0 ? -static_cast<T>(__builtin_inff()) : m;
}

template <class T>
void softmax(const SoftmaxArgs<T>& a) {
  const auto row = a.mask ? (a.bias ? softmax_row<T, true, true> : softmax_row<T, true, false>)
                          : (a.bias ? softmax_row<T, false, true> : softmax_row<T, false, false>);
  for (int first = 0; first < a.rows; first += kRowGroup) {
    const int count = a.rows - first < kRowGroup ? a.rows - first : kRowGroup;
    MaskWord group[kPanels] = {};
    if (a.mask)
      for (int panel = 0; panel < kPanels; ++panel) group[panel] = any_row(a.mask + first * kPanels + panel, count);
    for (int r = first; r < first + count; ++r) row(a, r, group);
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
