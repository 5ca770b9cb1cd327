// wgmma as software, from the PTX ISA's layouts of registers and of matrices in shared memory (ptx_wgmma.hpp). Products are made
// where they are issued.
#pragma once

#include <stdexcept>

#include "cuda/emulated/mma.hpp"

namespace maskattn::cuda {

enum class PanelDepth;

namespace emulated {

// Element (row, column) of the panel that a descriptor names, row counted from there, column from the descriptor's address.
template <Dtype kType>
float panel_element(std::uint64_t descriptor, int row, int column) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7))
    throw std::runtime_error("wgmma: the emulation knows 128-byte swizzle only");
  const std::uint32_t stride = static_cast<std::uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  std::uint32_t address = static_cast<std::uint32_t>(descriptor & 0x3fff) << 4;
  address += static_cast<std::uint32_t>(row / 8) * stride + static_cast<std::uint32_t>(row % 8 * 128 + column * 2);
  return float_of_16<kType>(*static_cast<const std::uint16_t*>(shared_pointer(address ^ (address >> 7 & 7) << 4)));
}

struct WgmmaLane {
  float (*d)[4];
  const std::uint32_t* a;  // or null: described
  std::uint64_t a_descriptor, b_descriptor;
  bool add;
};
using WgmmaLanes = std::array<WgmmaLane*, kWarpgroup>;

template <Dtype kType>
void multiply_panels(const WgmmaLanes& lanes, bool across_rows) {
  static thread_local float a[64][16], b[64][16];
  const WgmmaLane& first = *lanes[0];
  for (int row = 0; row < 64; ++row)
    for (int k = 0; k < 16; ++k) {
      const WgmmaLane& lane = *lanes[static_cast<std::size_t>(32 * (row / 16) + 4 * (row % 8) + k % 8 / 2)];
      a[row][k] = lane.a ? float_of_16<kType>(lane.a[row % 16 / 8 + 2 * (k / 8)] >> (16 * (k % 2)))
                         : panel_element<kType>(first.a_descriptor, row, k);
      b[row][k] =
          across_rows ? panel_element<kType>(first.b_descriptor, k, row) : panel_element<kType>(first.b_descriptor, row, k);
    }
  for (int thread = 0; thread < kWarpgroup; ++thread)
    for (int i = 0; i < 32; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i % 4 / 2), column = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
      float& d = lanes[static_cast<std::size_t>(thread)]->d[i / 4][i % 4];
      double sum = first.add ? static_cast<double>(d) : 0;
      for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[row][k]) * static_cast<double>(b[column][k]);
      d = static_cast<float>(sum);
    }
}

}  // namespace emulated

inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kGroups>
void wgmma_wait() {}
template <int kTiles>
void wgmma_registers(float (&)[kTiles][4]) {}
template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_up_registers() {}

template <Dtype kType, PanelDepth kDepth>
void wgmma_64x64x16(float (&d)[8][4], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  emulated::WgmmaLane mine{d, a, 0, b, add};
  emulated::collective<emulated::kWarpgroup>(
      "wgmma", mine, [](const auto& lanes) { emulated::multiply_panels<kType>(lanes, static_cast<int>(kDepth) != 0); });
}
template <Dtype kType, PanelDepth kDepth>
void wgmma_64x64x16(float (&d)[8][4], std::uint64_t a, std::uint64_t b, bool add) {
  emulated::WgmmaLane mine{d, nullptr, a, b, add};
  emulated::collective<emulated::kWarpgroup>(
      "wgmma", mine, [](const auto& lanes) { emulated::multiply_panels<kType>(lanes, static_cast<int>(kDepth) != 0); });
}

}  // namespace maskattn::cuda
