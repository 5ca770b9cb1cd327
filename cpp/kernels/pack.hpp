// Packing: keys transposed into panels, so that a vector holds one coordinate of several keys.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// One square of lanes keys x lanes coordinates, some of which may not be read or not be there.
template <class T, class S>
MASKATTN_INLINE void pack_edge(const PieceMemory& m, int key, MaskWord seen, int d, int coordinates, T* to) {
  Vec<T> x[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i)
    x[i] = seen >> i & 1 ? load_scaled<T>(row_at<S>(m, key + i) + d, m, key + i, coordinates) : Vec<T>{};
  transpose<T>(x);
  for (int i = 0; i < coordinates; ++i) store(to + i * kPanel, x[i]);
}

// A square of keys x words, where a word is as wide as T: its elements are taken out and converted after the transposition, so
// that narrow ones move two or four at a time.
template <class T, class S>
MASKATTN_INLINE void pack_words(const S* first, std::ptrdiff_t stride, Vec<T> scales, T* to) {
  constexpr int n = kLanes<T>, parts = sizeof(T) / sizeof(S);
  Vec<T> words[n];
  load_transposed(reinterpret_cast<const T*>(first), stride / parts, words);
  if constexpr (parts == 1) {
    MASKATTN_UNROLLED(i, n) store(to + i * kPanel, words[i]);
  } else {
    MASKATTN_UNROLLED(i, n)
      MASKATTN_UNROLLED(j, parts) {
        const Vec<T> x = part(first, bits_as<I32>(words[i]), j);
        store<T>(to + (i * parts + j) * kPanel, kScaled<S> ? x * scales : x);
      }
  }
}

template <class T, class S>
void pack_keys(const PieceMemory& m, MaskWord seen, int head_dim, T* panel) {
  constexpr int n = kLanes<T>, parts = sizeof(T) / sizeof(S), width = n * parts;
  constexpr bool has_words = sizeof(T) == 4 || parts == 1;
  constexpr MaskWord all = ~MaskWord{0} >> (64 - n);
  for (int key = 0; key < kPanel; key += n) {
    const MaskWord mine = seen >> key & all;
    if (mine == 0) continue;
    int d = 0;
    if (has_words && mine == all && m.stride % parts == 0) {
      const S* first = row_at<S>(m, key);
      Prefetcher later = prefetch_later<S>(m, key, head_dim);
      Vec<T> scales = {};
      if constexpr (has_words && kScaled<S>) scales = load_scales(m, key);
      for (; d + width <= head_dim; d += width) {
        if constexpr (has_words) pack_words<T>(first + d, m.stride, scales, panel + d * kPanel + key);
        later.lines(n * width * static_cast<int>(sizeof(S)) / 64);
      }
    }
    for (; d < head_dim; d += n) pack_edge<T, S>(m, key, mine, d, head_dim - d < n ? head_dim - d : n, panel + d * kPanel + key);
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
