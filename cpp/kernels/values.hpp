// Weights times values: per output element one FMA chain over the keys of each panel, in key order and from zero, the panels
// added in order, and the segment then merged into the running output. Keys that no row of a group sees are skipped; a key that
// some rows see adds 0 * v to the others.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

template <class T, class S>
struct ValuesTile {
  // Rows x Columns vectors of `partial`, over the keys of one panel that are set in `any`. If `fetch`, the next panel is brought
  // into the cache meanwhile, from row `later` on, `later_rows` for each piece that is read here.
  template <int Rows, int Columns>
  __attribute__((noinline)) static void run(const T* weights, MaskWord any, const PieceMemory& v, int column, T* partial,
                                            int columns, bool first, bool fetch, int later, int later_rows) {
    constexpr int bytes = Columns * kLanes<T> * static_cast<int>(sizeof(S));
    Vec<T> acc[Rows][Columns];
    MASKATTN_UNROLLED(r, Rows)
      MASKATTN_UNROLLED(c, Columns) acc[r][c] = Vec<T>{};
    for (int piece = 0; piece < kPanel / kPiece; ++piece) {
      Runs runs{any >> piece * kPiece & 0xffff};
      Prefetcher next = prefetch_later<S>(v, later + piece * later_rows, columns);
      for (int begin = 0, end = 0; runs.next(begin, end);) {
        const T* w = weights + piece * kPiece + begin;
        const S* from = static_cast<const S*>(v.piece[piece]) + begin * v.stride + column;
        for (int key = begin; key < end; ++key, ++w, from += v.stride) {
          Vec<T> value[Columns];
          MASKATTN_UNROLLED(c, Columns) value[c] = load_scaled<T>(from + c * kLanes<T>, v, piece * kPiece + key, kLanes<T>);
          if (fetch) next.lines((bytes + 63) / 64);
          MASKATTN_UNROLLED(r, Rows) {
            const Vec<T> p = splat<T>(w[r * kSegment]);
            MASKATTN_UNROLLED(c, Columns) acc[r][c] = fma(p, value[c], acc[r][c]);
          }
        }
      }
    }
    MASKATTN_UNROLLED(r, Rows) {
      __asm__("" : "+r"(partial));  // or g++ computes the addresses of all vectors first, most of them to the stack
      MASKATTN_UNROLLED(c, Columns) {
        T* to = partial + c * kLanes<T>;
        store<T>(to, first ? acc[r][c] : load<T>(to) + acc[r][c]);
      }
      partial += columns;
    }
  }
};

// The same chains for one row, over the keys that the row itself sees. Needed where a hidden key's value is not finite:
// its 0 * v was NaN.
template <class T, class S>
void values_row_guarded(const T* weights, const MaskWord* mask, const PieceMemory& v, int columns, T* partial) {
  for (int c = 0; c < columns; c += kLanes<T>) {
    Vec<T> total = {};
    for (int panel = 0; panel < kPanels; ++panel) {
      Vec<T> acc = {};
      for (int key = panel * kPanel; key < (panel + 1) * kPanel; ++key)
        if (mask[panel] >> key % kPanel & 1)
          acc = fma(splat<T>(weights[key]), load_scaled<T>(row_at<S>(v, key) + c, v, key, kLanes<T>), acc);
      total += acc;
    }
    store<T>(partial + c, total);
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

template <class T, class S>
void values(const ValuesArgs<T>& a) {
  static_assert(kBlockRows <= 32 * kRowGroup);
  constexpr int width = MASKATTN_KEY_VECTORS * kLanes<T>;
  std::uint32_t begun = 0;                         // groups of rows whose sum holds a panel already
  for (int panel = 0; panel < kPanels; ++panel) {  // outside the rows: a panel of values stays in the first-level cache
    std::uint32_t now = begun;
    for (int column = 0; column < a.columns; column += width) {
      const int vectors = (a.columns - column < width ? a.columns - column : width) / kLanes<T>;
      const int later = kPanel * column / a.columns, later_rows = kPiece * vectors * kLanes<T> / a.columns;
      for (int row = 0; row < a.rows; row += kRowGroup) {
        const int count = a.rows - row < kRowGroup ? a.rows - row : kRowGroup;
        const MaskWord any = a.mask ? any_row(a.mask + row * kPanels + panel, count) : ~MaskWord{0};
        if (any == 0) continue;
        const std::uint32_t group = 1u << row / kRowGroup;
        const auto tile = TileTable<ValuesTile<T, S>>::of(count, vectors);
        tile(a.weights + row * kSegment + panel * kPanel, any, a.v.panel(panel), column, a.partial + row * a.columns + column,
             a.columns, !(begun & group), row == 0, later, later_rows);
        now |= group;
      }
    }
    begun = now;
  }
  for (int r = 0; r < a.rows; ++r) {
    if (a.new_scale[r] == 0) continue;
    T* partial = a.partial + r * a.columns;
    if (a.mask && a.rows > 1 && !all_finite<T>(partial, a.columns))
      values_row_guarded<T, S>(a.weights + r * kSegment, a.mask + r * kPanels, a.v, a.columns, partial);
    merge<T>(a.out + r * a.columns, partial, a.old_scale[r], a.new_scale[r], a.columns);
  }
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
