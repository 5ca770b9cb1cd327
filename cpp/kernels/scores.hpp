// Scores of a block of queries against one panel of keys.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// One FMA chain per 32 coordinates, each from zero, chains added in order: as accurate as pairwise sums and the same for
// every shape of call.
inline constexpr int kChain = 32;

// Rows queries x KeyVectors vectors of keys, one chain. q is [head_dim][kRowGroup], panel [head_dim][kPanel].
template <class T, int Rows, int KeyVectors>
__attribute__((noinline)) void scores_tile(const T* q, const T* panel, int coordinates, bool first, T* scores) {
  Vec<T> acc[Rows][KeyVectors];
  MASKATTN_UNROLL for (int r = 0; r < Rows; ++r)
    MASKATTN_UNROLL for (int v = 0; v < KeyVectors; ++v) acc[r][v] = Vec<T>{};
  for (int d = 0; d < coordinates; ++d) {
    Vec<T> key[KeyVectors];
    MASKATTN_UNROLL for (int v = 0; v < KeyVectors; ++v) key[v] = load<T>(panel + v * kLanes<T>);
    MASKATTN_UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec<T> query = splat<T>(q[r]);
      MASKATTN_UNROLL for (int v = 0; v < KeyVectors; ++v) acc[r][v] = fma(query, key[v], acc[r][v]);
    }
    q += kRowGroup;
    panel += kPanel;
  }
  MASKATTN_UNROLL for (int r = 0; r < Rows; ++r)
    MASKATTN_UNROLL for (int v = 0; v < KeyVectors; ++v) {
      T* to = scores + r * kSegment + v * kLanes<T>;
      store<T>(to, first ? acc[r][v] : load<T>(to) + acc[r][v]);
    }
}

template <class T, int Rows>
void scores_group(const T* q, const T* panel, int coordinates, bool first, T* scores) {
  constexpr int width = MASKATTN_KEY_VECTORS * kLanes<T>;
  for (int key = 0; key < kPanel; key += width)
    scores_tile<T, Rows, MASKATTN_KEY_VECTORS>(q, panel + key, coordinates, first, scores + key);
}

// True where some row of the group sees some key of the panel.
MASKATTN_INLINE bool group_sees(const MaskWord* mask, int rows) {
  MaskWord any = 0;
  for (int r = 0; r < rows; ++r) any |= mask[r * kPanels];
  return any != 0;
}

template <class T>
void scores(const T* q, int rows, const T* panel, int head_dim, const MaskWord* mask, T* scores) {
  using Group = void (*)(const T*, const T*, int, bool, T*);
  static constexpr Group groups[] = {nullptr,           scores_group<T, 1>, scores_group<T, 2>, scores_group<T, 3>,
                                     scores_group<T, 4>, scores_group<T, 5>, scores_group<T, 6>};
  static_assert(sizeof groups / sizeof *groups == kRowGroup + 1);
  for (int d = 0; d < head_dim; d += kChain) {  // outermost: 32 coordinates of a panel stay in the first-level cache
    const int coordinates = head_dim - d < kChain ? head_dim - d : kChain;
    for (int row = 0; row < rows; row += kRowGroup) {
      const int count = rows - row < kRowGroup ? rows - row : kRowGroup;
      if (mask && !group_sees(mask + row * kPanels, count)) continue;
      groups[count](q + row * head_dim + d * kRowGroup, panel + d * kPanel, coordinates, d == 0, scores + row * kSegment);
    }
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
