// Weights times values: one FMA chain per output element over the segment's keys in key order, then merged into the running
// output. Keys that no row of a group sees are skipped; a key that some rows see adds 0 * v to the others.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// The keys of a panel that some row of a group sees, as runs.
struct Runs {
  MaskWord left;
  // Moves to the next run [begin, end); false when there is none.
  MASKATTN_INLINE bool next(int& begin, int& end) {
    if (left == 0) return false;
    begin = __builtin_ctzll(left);
    const MaskWord after = ~(left >> begin);
    const int length = after == 0 ? 64 : __builtin_ctzll(after);
    end = begin + length < 64 ? begin + length : 64;
    left = end == 64 ? 0 : left >> end << end;
    return true;
  }
};

// Rows x Columns vectors of `partial` over the keys of one panel.
template <class T, int Rows, int Columns>
__attribute__((noinline)) void values_tile(const T* weights, MaskWord any, const T* v, std::ptrdiff_t v_stride, T* partial,
                                           int columns, bool first) {
  Vec<T> acc[Rows][Columns];
  MASKATTN_UNROLL for (int r = 0; r < Rows; ++r)
    MASKATTN_UNROLL for (int c = 0; c < Columns; ++c) acc[r][c] = first ? Vec<T>{} : load<T>(partial + r * columns + c * kLanes<T>);
  Runs runs{any};
  for (int begin = 0, end = 0; runs.next(begin, end);) {
    const T* w = weights + begin;
    const T* from = v + begin * v_stride;
    for (int key = begin; key < end; ++key, ++w, from += v_stride) {
      Vec<T> value[Columns];
      MASKATTN_UNROLL for (int c = 0; c < Columns; ++c) value[c] = load<T>(from + c * kLanes<T>);
      MASKATTN_UNROLL for (int r = 0; r < Rows; ++r) {
        const Vec<T> p = splat<T>(w[r * kSegment]);
        MASKATTN_UNROLL for (int c = 0; c < Columns; ++c) acc[r][c] = fma(p, value[c], acc[r][c]);
      }
    }
  }
  MASKATTN_UNROLL for (int r = 0; r < Rows; ++r)
    MASKATTN_UNROLL for (int c = 0; c < Columns; ++c) store<T>(partial + r * columns + c * kLanes<T>, acc[r][c]);
}

template <class T>
using ValuesTile = void (*)(const T*, MaskWord, const T*, std::ptrdiff_t, T*, int, bool);

template <class T, int Columns>
inline constexpr ValuesTile<T> kRowTiles[] = {nullptr,
                                              values_tile<T, 1, Columns>,
                                              values_tile<T, 2, Columns>,
                                              values_tile<T, 3, Columns>,
                                              values_tile<T, 4, Columns>,
                                              values_tile<T, 5, Columns>,
                                              values_tile<T, 6, Columns>};

template <class T>
ValuesTile<T> values_tile_for(int rows, int vectors) {
#if MASKATTN_KEY_VECTORS == 4
  static constexpr const ValuesTile<T>* tiles[] = {nullptr, kRowTiles<T, 1>, kRowTiles<T, 2>, kRowTiles<T, 3>, kRowTiles<T, 4>};
#else
  static constexpr const ValuesTile<T>* tiles[] = {nullptr, kRowTiles<T, 1>, kRowTiles<T, 2>};
#endif
  static_assert(sizeof tiles / sizeof *tiles == MASKATTN_KEY_VECTORS + 1);
  return tiles[vectors][rows];
}

// The same chain for one row, over the keys that the row itself sees. Needed where a hidden key's value is not finite:
// its 0 * v was NaN.
template <class T>
void values_row_guarded(const T* weights, const MaskWord* mask, const T* v, std::ptrdiff_t v_stride, int columns, T* partial) {
  for (int c = 0; c < columns; c += kLanes<T>) {
    Vec<T> acc = {};
    for (int key = 0; key < kSegment; ++key)
      if (mask[key / kPanel] >> (key % kPanel) & 1)
        acc = fma(splat<T>(weights[key]), load<T>(v + key * v_stride + c), acc);
    store<T>(partial + c, acc);
  }
}

template <class T>
bool all_finite(const T* x, int count) {
  Vec<T> zero = {};
  for (int i = 0; i < count; i += kLanes<T>) zero += load<T>(x + i) * T{0};
  return sum_lanes<T>(zero) == 0;
}

template <class T>
void merge(T* out, const T* part, T old_scale, T new_scale, int columns) {
  for (int c = 0; c < columns; c += kLanes<T>)
    store<T>(out + c, fma(load<T>(out + c), splat<T>(old_scale), load<T>(part + c) * new_scale));
}

template <class T>
void values(const ValuesArgs<T>& a) {
  constexpr int width = MASKATTN_KEY_VECTORS * kLanes<T>;
  for (int column = 0; column < a.columns; column += width) {
    const int vectors = (a.columns - column < width ? a.columns - column : width) / kLanes<T>;
    for (int panel = 0; panel < kPanels; ++panel)  // outside the rows: a panel of values stays in the first-level cache
      for (int row = 0; row < a.rows; row += kRowGroup) {
        const int count = a.rows - row < kRowGroup ? a.rows - row : kRowGroup;
        MaskWord any = a.mask ? 0 : ~MaskWord{0};
        if (a.mask)
          for (int r = 0; r < count; ++r) any |= a.mask[(row + r) * kPanels + panel];
        if (any == 0 && panel != 0) continue;
        values_tile_for<T>(count, vectors)(a.weights + row * kSegment + panel * kPanel, any,
                                           a.v + panel * kPanel * a.v_stride + column, a.v_stride,
                                           a.partial + row * a.columns + column, a.columns, panel == 0);
      }
  }
  for (int r = 0; r < a.rows; ++r) {
    if (a.new_scale[r] == 0) continue;
    T* partial = a.partial + r * a.columns;
    if (a.mask && !all_finite<T>(partial, a.columns))
      values_row_guarded<T>(a.weights + r * kSegment, a.mask + r * kPanels, a.v, a.v_stride, a.columns, partial);
    merge<T>(a.out + r * a.columns, partial, a.old_scale[r], a.new_scale[r], a.columns);
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
