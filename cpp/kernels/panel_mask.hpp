// The mask of a panel: a word a row, `kPanels` words from row to row.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// The keys that some of `rows` rows sees.
MASKATTN_INLINE MaskWord any_row(const MaskWord* mask, int rows) {
  MaskWord any = 0;
  for (int r = 0; r < rows; ++r) any |= mask[r * kPanels];
  return any;
}

// Bits as runs of consecutive keys.
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

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
