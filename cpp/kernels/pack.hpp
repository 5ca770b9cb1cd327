// Packing: keys transposed into panels, so that a vector holds one coordinate of several keys.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// One square of lanes keys x lanes coordinates, some of which may not be read or not be there.
template <class T>
MASKATTN_INLINE void load_edge(const T* k, std::ptrdiff_t stride, MaskWord seen, int coordinates, Vec<T> (&x)[kLanes<T>]) {
  for (int i = 0; i < kLanes<T>; ++i) x[i] = seen >> i & 1 ? load_first(k + i * stride, coordinates) : Vec<T>{};
  transpose<T>(x);
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
      Vec<T> x[n];
      if (mine == all && coordinates == n)
        load_transposed(first + d, stride, x);
      else
        load_edge(first + d, stride, mine, coordinates, x);
      for (int i = 0; i < coordinates; ++i) store(panel + (d + i) * kPanel + key, x[i]);
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
