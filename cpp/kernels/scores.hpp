// Scores of a block of queries against one panel of keys.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// One FMA chain per 32 coordinates, each from zero, chains added in order: as accurate as pairwise sums and the same for
// every shape of call.
inline constexpr int kChain = 32;

template <class T>
struct ScoresTile {
  // Rows queries x KeyVectors vectors of keys, one chain: coordinates from `begin` to `end` of the queries, and of
  // panel[head_dim][kPanel].
  template <int Rows, int KeyVectors>
  __attribute__((noinline)) static void run(const T* const* q, const T* panel, int begin, int end, T* scores) {
    const T* query[Rows];
    MASKATTN_UNROLLED(r, Rows) query[r] = q[r];
    Vec<T> acc[Rows][KeyVectors];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, KeyVectors) acc[r][v] = Vec<T>{};
    panel += begin * kPanel;
    for (std::ptrdiff_t d = begin; d < end; ++d, panel += kPanel) {
      Vec<T> key[KeyVectors];
      MASKATTN_UNROLLED(v, KeyVectors) key[v] = load<T>(panel + v * kLanes<T>);
      MASKATTN_UNROLLED(r, Rows) {
        const Vec<T> x = splat<T>(query[r][d]);
        MASKATTN_UNROLLED(v, KeyVectors) acc[r][v] = fma(x, key[v], acc[r][v]);
      }
    }
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(v, KeyVectors) {
        T* to = scores + r * kSegment + v * kLanes<T>;
        store<T>(to, begin == 0 ? acc[r][v] : load<T>(to) + acc[r][v]);
      }
  }
};

template <class T>
void scores(const T* const* q, int rows, const T* panel, int head_dim, const MaskWord* mask, T* scores) {
  constexpr int n = kLanes<T>, most = MASKATTN_KEY_VECTORS;
  for (int d = 0; d < head_dim; d += kChain) {  // outermost: 32 coordinates of a panel stay in the first-level cache
    const int end = head_dim - d < kChain ? head_dim : d + kChain;
    for (int row = 0; row < rows; row += kRowGroup) {
      const int count = rows - row < kRowGroup ? rows - row : kRowGroup;
      int first = 0, last = kPanel / n;  // vectors of keys that the group sees
      if (mask) {
        const MaskWord any = any_row(mask + row * kPanels, count);
        if (any == 0) continue;
        first = __builtin_ctzll(any) / n;
        last = (kPanel - 1 - __builtin_clzll(any)) / n + 1;
      }
      for (int v = first; v < last; v += most) {
        const auto tile = TileTable<ScoresTile<T>>::of(count, last - v < most ? last - v : most);
        tile(q + row, panel + v * n, d, end, scores + row * kSegment + v * n);
      }
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
