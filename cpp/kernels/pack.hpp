// Packing: keys transposed into panels, so that a vector holds one coordinate of several keys.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// One square of lanes keys x lanes coordinates. AllSeen: every key may be read.
template <class T, bool AllSeen>
MASKATTN_INLINE void pack_square(const T* k, std::ptrdiff_t stride, MaskWord seen, int coordinates, T* panel) {
  Vec<T> x[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) {
    const T* key = k + i * stride;
    if (!AllSeen && !(seen >> i & 1))
      x[i] = Vec<T>{};
    else
      x[i] = coordinates == kLanes<T> ? load<T>(key) : load_first(key, coordinates);
  }
  transpose<T>(x);
  if (coordinates == kLanes<T>)
    for (int d = 0; d < kLanes<T>; ++d) store(panel + d * kPanel, x[d]);
  else
    for (int d = 0; d < coordinates; ++d) store(panel + d * kPanel, x[d]);
}

template <class T>
void pack_keys(const T* k, std::ptrdiff_t stride, MaskWord seen, int head_dim, T* panel) {
  constexpr int n = kLanes<T>;
  constexpr MaskWord all = ~MaskWord{0} >> (64 - n);
  for (int key = 0; key < kPanel; key += n) {
    const MaskWord mine = seen >> key & all;
    if (mine == 0) continue;
    const T* first = k + key * stride;
    for (int d = 0; d < head_dim; d += n) {
      const int coordinates = head_dim - d < n ? head_dim - d : n;
      T* to = panel + d * kPanel + key;
      if (mine == all)
        pack_square<T, true>(first + d, stride, mine, coordinates, to);
      else
        pack_square<T, false>(first + d, stride, mine, coordinates, to);
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
