// Packing: keys transposed into panels, so that a vector holds one coordinate of several keys.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// Keys between a read and its prefetch: the strided reads of a transposition hide from the hardware how far they will go, and
// without this a decode from memory takes twice as long. A prefetch never faults, and what it fetches does not count as read.
inline constexpr int kPrefetchKeys = 32;

// One square of lanes keys x lanes coordinates, some of which may not be read or not be there.
template <class T, class S>
MASKATTN_INLINE void load_edge(const S* k, const PanelMemory& m, int key, MaskWord seen, int coordinates,
                               Vec<T> (&x)[kLanes<T>]) {
  for (int i = 0; i < kLanes<T>; ++i) x[i] = seen >> i & 1 ? load_row<T>(k + i * m.stride, m, key + i, coordinates) : Vec<T>{};
  transpose<T>(x);
}

template <class T, class S>
void pack_keys(const PanelMemory& m, MaskWord seen, int head_dim, T* panel) {
  constexpr int n = kLanes<T>;
  constexpr MaskWord all = ~MaskWord{0} >> (64 - n);
  for (int key = 0; key < kPanel; key += n) {
    const MaskWord mine = seen >> key & all;
    if (mine == 0) continue;
    const S* first = static_cast<const S*>(m.data) + key * m.stride;
    for (int d = 0; d < head_dim; d += n) {
      const int coordinates = head_dim - d < n ? head_dim - d : n;
      T* to = panel + d * kPanel + key;
      Vec<T> x[n];
      if (mine != all || coordinates != n) {
        load_edge<T>(first + d, m, key, mine, coordinates, x);
        for (int i = 0; i < coordinates; ++i) store(to + i * kPanel, x[i]);
        continue;
      }
      if constexpr (sizeof(S) == sizeof(T)) {
        load_transposed(first + d, m.stride, x);
      } else {
        T square[n * n];
        MASKATTN_UNROLLED(i, n) store<T>(square + i * n, load_row<T>(first + d + i * m.stride, m, key + i, n));
        load_transposed(square, n, x);
      }
      MASKATTN_UNROLLED(i, n) __builtin_prefetch(first + d + (i + kPrefetchKeys) * m.stride);
      MASKATTN_UNROLLED(i, n) store(to + i * kPanel, x[i]);
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
