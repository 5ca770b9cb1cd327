// What a warpgroup of attention_wgmma.cu has in registers: a strip's scores and outputs, and its queries where there is room.
#pragma once

#include "cuda/fragment_softmax.hpp"
#include "cuda/ptx_mma.hpp"
#include "cuda/ptx_wgmma.hpp"

namespace maskattn::cuda {

// Panels of queries in shared memory, [kDim / 64][64 rows][128 bytes], and 64 keys or values in the same form.
template <Dtype kType, int kDim>
struct WgmmaMath {
  static constexpr int kPanels = kDim / kPanelColumns, kPanelBytes = kTile * kPanelRowBytes;
  static constexpr bool kQueriesInRegisters = kDim <= 128;
  static constexpr int kQuerySteps = kQueriesInRegisters ? kDim / 16 : 1;

  float o[kPanels][8][4];  // the sum of values
  std::uint32_t p[4][4];   // weights as operands, which products under way still read
  std::uint32_t q[kQuerySteps][4];
  RowStates rows;

  __device__ void clear() {
    rows = {};
#pragma unroll
    for (int n = 0; n < kPanels; ++n)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][j][i] = 0;
  }

  // s = queries times keys; under way when this returns. Whatever was in s before would occupy registers until then: it is an
  // array of its own for each tile.
  __device__ void multiply_keys(float (&s)[8][4], const char* query_panels, const char* k) {
    [[maybe_unused]] const std::uint32_t query_address = shared_address(query_panels);
    const std::uint32_t key_address = shared_address(k);
    wgmma_registers(s);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const std::uint64_t keys = panel_descriptor(key_address, step / 4 * kPanelBytes, PanelDepth::along_rows, step % 4);
      if constexpr (kQueriesInRegisters) {
        wgmma_64x64x16<kType, PanelDepth::along_rows>(s, q[step], keys, step != 0);
      } else {
        const std::uint64_t queries = panel_descriptor(query_address, step / 4 * kPanelBytes, PanelDepth::along_rows, step % 4);
        wgmma_64x64x16<kType, PanelDepth::along_rows>(s, queries, keys, step != 0);
      }
    }
    wgmma_commit();
  }

  // o += weights times values; under way when this returns.
  __device__ void multiply_values(const char* v) {
    const std::uint32_t address = shared_address(v);
#pragma unroll
    for (int n = 0; n < kPanels; ++n) wgmma_registers(o[n]);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int n = 0; n < kPanels; ++n)
        wgmma_64x64x16<kType, PanelDepth::across_rows>(
            o[n], p[step], panel_descriptor(address, n * kPanelBytes, PanelDepth::across_rows, step), true);
    wgmma_commit();
  }
  template <int kGroups>
  __device__ static void wait_for_scores(float (&s)[8][4]) {
    wgmma_wait<kGroups>();
    wgmma_registers(s);
  }
  __device__ void wait_for_outputs() {
    wgmma_wait<0>();
#pragma unroll
    for (int n = 0; n < kPanels; ++n) wgmma_registers(o[n]);
  }

  // After the products that read the weights before.
  __device__ void take_weights(const float (&s)[8][4], const float (&rescale)[2]) {
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto& from = s[2 * step + i / 2];
        p[step][i] = pack_16<kType>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
      }
    if (__all_sync(0xffffffffu, rescale[0] == 1 && rescale[1] == 1)) return;
#pragma unroll
    for (int n = 0; n < kPanels; ++n)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][j][i] *= rescale[i / 2];
  }
};

}  // namespace maskattn::cuda
