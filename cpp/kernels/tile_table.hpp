// Register tiles are templates over their size; a table holds every size that a call may need at its edges.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

// Kernel::run<Rows, Vectors> for 1 <= Rows <= kRowGroup, 1 <= Vectors <= MASKATTN_KEY_VECTORS.
template <class Kernel>
class TileTable {
 public:
  using Tile = decltype(&Kernel::template run<1, 1>);
  static Tile of(int rows, int vectors) { return table.tile[rows - 1][vectors - 1]; }

 private:
  constexpr TileTable() { fill<kRowGroup, MASKATTN_KEY_VECTORS>(); }
  template <int Rows, int Vectors>
  constexpr void fill() {
    tile[Rows - 1][Vectors - 1] = Kernel::template run<Rows, Vectors>;
    if constexpr (Vectors > 1)
      fill<Rows, Vectors - 1>();
    else if constexpr (Rows > 1)
      fill<Rows - 1, MASKATTN_KEY_VECTORS>();
  }
  static const TileTable table;
  Tile tile[kRowGroup][MASKATTN_KEY_VECTORS] = {};
};
template <class Kernel>
constexpr TileTable<Kernel> TileTable<Kernel>::table{};

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
