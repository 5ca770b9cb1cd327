// Biases of a row: as an array has them, and by distance.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

template <class T, class S>
bool read_bias(const BiasArgs<T>& a) {
  constexpr int n = kLanes<T>;
  const Vec<T> lowest = splat(-static_cast<T>(__builtin_inff()));
  MaskWord any = 0;
  for (int panel = 0; panel < kPanels; ++panel) {
    const int first = panel * kPanel, left = a.count - first < kPanel ? a.count - first : kPanel;
    MaskWord hidden = 0;
    if (a.seen[panel] != 0 && left > 0) {
      const S* from = static_cast<const S*>(a.from) + first * a.stride;
      S row[kPanel];
      if (a.stride != 1) {
        for (int i = 0; i < left; ++i) row[i] = from[i * a.stride];
        from = row;
      }
      for (int i = 0; i < left; i += n) {
        const Vec<T> x = Memory<T, S>::load(from + i, left - i < n ? left - i : n);
        hidden |= equal_bits(x, lowest) << i;
        if (!a.to) continue;
        T* to = a.to + first + i;
        store<T>(to, a.add ? load<T>(to) + x : x);
      }
    }
    a.hidden[panel] = hidden;
    any |= hidden;
  }
  return any != 0;
}

// Plain loops, which the compiler vectorises; in double and rounded once.
template <class T>
void distance_bias(const DistanceArgs<T>& a) {
  const auto below = [&](std::int64_t distance) {
    return static_cast<int>(distance < a.first ? 0 : distance < a.first + a.count ? distance - a.first : a.count);
  };
  if (a.table) {
    const int begin = below(-a.reach), end = below(a.reach);
    const double *here = a.table + a.reach + a.first, farthest[2] = {a.table[0], a.table[2 * a.reach]};
    for (int i = 0; i < begin; ++i) a.to[i] = static_cast<T>(farthest[0]);
    for (int i = begin; i < end; ++i) a.to[i] = static_cast<T>(here[i]);
    for (int i = end; i < a.count; ++i) a.to[i] = static_cast<T>(farthest[1]);
  } else {
    for (int i = 0; i < a.count; ++i) a.to[i] = T{0};
  }
  const double first = static_cast<double>(a.first);
  if (a.slope != 0)
    for (int i = 0; i < a.count; ++i) a.to[i] -= static_cast<T>(a.slope * __builtin_fabs(first + i));
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
