// mma.sync and ldmatrix as software, from the PTX ISA's tables of fragments (ptx_mma.hpp). Sums are rounded once.
#pragma once

#include "maskattn/attention.hpp"

namespace maskattn::cuda {
namespace emulated {

template <Dtype kType>
float float_of_16(std::uint32_t bits) {
  const auto narrow = static_cast<std::uint16_t>(bits);
  if constexpr (kType == Dtype::bfloat16) return __bfloat162float(__nv_bfloat16{narrow});
  return __half2float(__half{narrow});
}

struct MmaLane {
  float* d;
  const std::uint32_t *a, *b;
};
using MmaLanes = std::array<MmaLane*, kWarp>;

// D of every lane, where a(lanes, row, k) and b(lanes, k, column) find elements in the fragments.
template <int kDepth, class A, class B>
void multiply_fragments(const MmaLanes& lanes, const A& a, const B& b) {
  for (int lane = 0; lane < kWarp; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = lanes[static_cast<std::size_t>(lane)]->d[i];
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a(lanes, row, k)) * static_cast<double>(b(lanes, k, column));
      lanes[static_cast<std::size_t>(lane)]->d[i] = static_cast<float>(sum);
    }
}

inline const MmaLane& lane_of(const MmaLanes& lanes, int group, int t) { return *lanes[static_cast<std::size_t>(4 * group + t)]; }

inline void load_matrices(const char* name, std::uint32_t (&r)[4], const void* row, bool transposed) {
  struct Lane {
    std::uint32_t* r;
    const std::uint16_t* row;
  } mine{r, static_cast<const std::uint16_t*>(row)};
  collective(name, mine, [=](const std::array<Lane*, kWarp>& lanes) {
    const auto element = [&](int matrix, int i, int j) { return lanes[static_cast<std::size_t>(8 * matrix + i)]->row[j]; };
    for (int lane = 0; lane < kWarp; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        const int i = lane / 4, j = 2 * (lane % 4);
        const std::uint32_t low = transposed ? element(matrix, j, i) : element(matrix, i, j);
        const std::uint32_t high = transposed ? element(matrix, j + 1, i) : element(matrix, i, j + 1);
        lanes[static_cast<std::size_t>(lane)]->r[matrix] = low | high << 16;
      }
  });
}

}  // namespace emulated

template <Dtype kType>
void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const std::uint32_t b[] = {b0, b1};
  emulated::MmaLane mine{d, a, b};
  emulated::collective("mma.m16n8k16", mine, [](const emulated::MmaLanes& lanes) {
    const auto half = [](std::uint32_t word, int k) { return emulated::float_of_16<kType>(word >> (16 * (k % 2))); };
    emulated::multiply_fragments<16>(
        lanes,
        [&](const auto& of, int row, int k) {
          return half(emulated::lane_of(of, row % 8, k % 8 / 2).a[row / 8 + 2 * (k / 8)], k);
        },
        [&](const auto& of, int k, int column) { return half(emulated::lane_of(of, column, k % 8 / 2).b[k / 8], k); });
  });
}

inline void mma_16x8x8(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t b0) {
  const std::uint32_t a[] = {a0, a1}, b[] = {b0};
  emulated::MmaLane mine{d, a, b};
  emulated::collective("mma.m16n8k8", mine, [](const emulated::MmaLanes& lanes) {
    const auto half = [](std::uint32_t word, int k) { return emulated::float_of_16<Dtype::bfloat16>(word >> (16 * (k % 2))); };
    emulated::multiply_fragments<8>(
        lanes, [&](const auto& of, int row, int k) { return half(emulated::lane_of(of, row % 8, k / 2).a[row / 8], k); },
        [&](const auto& of, int k, int column) { return half(emulated::lane_of(of, column, k / 2).b[0], k); });
  });
}

inline void mma_16x8x8_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  const std::uint32_t b[] = {b0, b1};
  emulated::MmaLane mine{d, a, b};
  emulated::collective("mma.m16n8k8.tf32", mine, [](const emulated::MmaLanes& lanes) {
    const auto number = [](std::uint32_t word) { return __uint_as_float(word & 0xffffe000); };
    emulated::multiply_fragments<8>(
        lanes,
        [&](const auto& of, int row, int k) { return number(emulated::lane_of(of, row % 8, k % 4).a[row / 8 + 2 * (k / 4)]); },
        [&](const auto& of, int k, int column) { return number(emulated::lane_of(of, column, k % 4).b[k / 4]); });
  });
}

inline void load_matrices(std::uint32_t (&r)[4], const void* row) { emulated::load_matrices("ldmatrix", r, row, false); }
inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  emulated::load_matrices("ldmatrix.trans", r, row, true);
}

template <Dtype kType>
std::uint32_t pack_16(float low, float high) {
  if constexpr (kType == Dtype::bfloat16) return std::bit_cast<std::uint32_t>(__floats2bfloat162_rn(low, high));
  return std::bit_cast<std::uint32_t>(__floats2half2_rn(low, high));
}

}  // namespace maskattn::cuda
