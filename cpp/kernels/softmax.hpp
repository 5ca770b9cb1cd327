// From the scores of a block in one segment to weights 2^(z - m), with m the segment's own rounded maximum.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

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

// 2^(s * factor - top) for weights that will be rounded to bfloat16: relative to the largest, which is then exact. 2^f = 1 + f
// r(f), r minimax, relative error 2.8e-6. Below the normal range weights stay at its edge, 2^-126.
MASKATTN_INLINE F32 coarse_weight(F32 s, F32 factor, F32 top) {
  constexpr float kInteger = 0x1.8p23f;  // a sum with it is rounded to an integer, which is in its lowest bits
  const F32 z = vmax(splat(-126.f), fma(s, factor, -top)), shifted = z + kInteger, f = z - (shifted - kInteger);
  F32 p = splat(0x1.3a007ap-7f);
  p = fma(p, f, splat(0x1.c9fd1ep-5f));
  p = fma(p, f, splat(0x1.ec0382p-3f));
  p = fma(p, f, splat(0x1.62e12ap-1f));
  p = fma(p, f, splat(1.f));
  return bits_as<F32>(bits_as<I32>(p) + (bits_as<I32>(shifted) << 23));
}

// Where weights go: here, in place of their scores.
template <class T>
struct WeightsInPlace {
  T* row;

  WeightsInPlace of_row(int r) const { return {row + r * kSegment}; }
  // What `of` takes as its last argument: the exponent that weights are relative to.
  static T reference(int, T top) { return round_one(top); }
  static MASKATTN_INLINE Vec<T> of(Vec<T> s, Vec<T> high, Vec<T> low, Vec<T> m) { return weight<T>(s, high, low, m); }
  // Two vectors of weights, of the keys from `key` on.
  MASKATTN_INLINE void put(int key, Vec<T> p0, Vec<T> p1, Vec<T>& sum) const {
    store<T>(row + key, p0);
    store<T>(row + key + kLanes<T>, p1);
    sum += p0;
    sum += p1;
  }
};

// The largest z of a row, before it is rounded; -inf where the row sees nothing.
template <class T, bool Masked, bool Biased>
T maximum_of_row(const SoftmaxArgs<T>& a, int row) {
  constexpr int n = kLanes<T>;
  constexpr MaskWord kAll = ~MaskWord{0}, lanes = kAll >> (64 - n);
  const Vec<T> hidden = splat(-static_cast<T>(__builtin_inff()));
  T* s = a.scores + row * kSegment;
  const T* bias = Biased ? a.bias[row] : nullptr;
  Vec<T> top = hidden;
  for (int panel = 0; panel < kPanels; ++panel) {
    const MaskWord word = Masked ? a.mask[row * kPanels + panel] : kAll;
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
  return max_lanes<T>(top) * a.log2_hi;
}

template <class T, bool Masked, class Weights>
T weights_of_row(const SoftmaxArgs<T>& a, int row, T m, const MaskWord* group, const Weights& weights) {
  constexpr int n = kLanes<T>;
  constexpr MaskWord kAll = ~MaskWord{0}, lanes = kAll >> (64 - n), both = kAll >> (64 - 2 * n);
  const Vec<T> high = splat(a.log2_hi), low = splat(a.log2_lo);
  const T* s = a.scores + row * kSegment;
  Vec<T> sum = {};
  for (int panel = 0; panel < kPanels; ++panel) {
    const MaskWord word = Masked ? a.mask[row * kPanels + panel] : kAll;
    if (Masked && group[panel] == 0) continue;
    for (int i = 0; i < kPanel; i += 2 * n) {
      if (Masked && (group[panel] >> i & both) == 0) continue;
      const int key = panel * kPanel + i;
      Vec<T> p[2] = {};
      for (int half = 0; half < 2; ++half) {
        if (Masked && (word >> (i + half * n) & lanes) == 0) continue;
        p[half] = Weights::of(load<T>(s + key + half * n), high, low, splat(m));
        if (Masked && word != kAll) p[half] = keep(p[half], word >> (i + half * n), Vec<T>{});  // a scale of 0 makes NaN
      }
      weights.put(key, p[0], p[1], sum);
    }
  }
  return sum_lanes<T>(sum);
}

// Rows that share their loads of values. `group`: the keys of each panel that some of them sees; vectors of others are left as
// they are. All maxima come first, or each row would wait for its own.
template <class T, bool Masked, bool Biased, class Weights>
void softmax_rows(const SoftmaxArgs<T>& a, int first, int count, const MaskWord* group, const Weights& weights) {
  constexpr T hidden = -static_cast<T>(__builtin_inff());
  for (int r = first; r < first + count; ++r) a.maximum[r] = maximum_of_row<T, Masked, Biased>(a, r);
  for (int r = first; r < first + count; ++r) {
    const T top = a.maximum[r] > hidden ? a.maximum[r] : T{0};
    a.maximum[r] = round_one(top);
    a.sum[r] = weights_of_row<T, Masked>(a, r, weights.reference(r, top), group, weights.of_row(r));
    if (a.sum[r] == 0) a.maximum[r] = hidden;
  }
}

template <class T, class Weights>
void softmax_group(const SoftmaxArgs<T>& a, int first, int count, const MaskWord* group, const Weights& weights) {
  if (a.mask)
    (a.bias ? softmax_rows<T, true, true, Weights> : softmax_rows<T, true, false, Weights>)(a, first, count, group, weights);
  else
    (a.bias ? softmax_rows<T, false, true, Weights> : softmax_rows<T, false, false, Weights>)(a, first, count, group, weights);
}

template <class T>
void softmax(const SoftmaxArgs<T>& a) {
  for (int first = 0; first < a.rows; first += kRowGroup) {
    const int count = a.rows - first < kRowGroup ? a.rows - first : kRowGroup;
    MaskWord group[kPanels] = {};
    if (a.mask)
      for (int panel = 0; panel < kPanels; ++panel) group[panel] = any_row(a.mask + first * kPanels + panel, count);
    softmax_group(a, first, count, group, WeightsInPlace<T>{a.scores});
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
