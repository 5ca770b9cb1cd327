// What a warp multiplies in attention_mma.cu: how fragments come from shared memory and from weights, and how often they are
// multiplied. A step is 32 bytes of a query's or key's coordinates: 16 of 16 bits, 8 of 32.
#pragma once

#include "cuda/ptx_mma.hpp"
#include "cuda/tile_copy.hpp"

namespace maskattn::cuda {

// float16 and bfloat16, as they are; weights are rounded to them.
template <Dtype kType>
struct Operands16 {
  static constexpr int kElementBytes = 2, kStepKeys = 16;
  struct A {
    std::uint32_t word[4];
  };
  struct B {
    std::uint32_t word[2];
  };

  __device__ static A query(const std::uint32_t (&r)[4]) { return {{r[0], r[1], r[2], r[3]}}; }
  __device__ static B key(std::uint32_t b0, std::uint32_t b1) { return {{b0, b1}}; }
  __device__ static void multiply(float (&d)[4], const A& a, const B& b) { mma_16x8x16<kType>(d, a.word, b.word[0], b.word[1]); }

  // Weights as they come from the softmax, and as the operands of steps of 16 keys.
  template <int kTiles>
  struct Weights {
    std::uint32_t word[kTiles][2];
    __device__ void take(const float (&s)[kTiles][4]) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) word[j][i] = pack_16<kType>(s[j][2 * i], s[j][2 * i + 1]);
    }
    __device__ A fragment(int step) const {
      const auto &first = word[2 * step], &second = word[2 * step + 1];
      return {{first[0], first[1], second[0], second[1]}};
    }
  };
  // Columns 16 n to 16 n + 15 of the step's values, as two fragments.
  template <int kRowBytes>
  __device__ static void values(const char* tile, int step, int n, B (&b)[2]) {
    const int lane = threadIdx.x % 32;
    std::uint32_t r[4];
    load_matrices_transposed(r, tile + swizzled<kRowBytes>(lane & 15, lane >> 4, step * 16, 2 * n));
    b[0] = {{r[0], r[1]}};
    b[1] = {{r[2], r[3]}};
  }
};

// Columns 16 n to 16 n + 15 of the float32 values of a step's 8 keys, as two fragments. A lane has weights of keys 2 t and 2 t +
// 1, which are neighbours in an operand, or numbers t and t + 4: any order of keys is right if values follow it.
template <class Operands, int kRowBytes>
__device__ void float_values(const char* tile, int step, int n, typename Operands::B (&b)[2]) {
  const int lane = threadIdx.x % 32, key = 2 * (lane % 4), column = lane / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto at = [&](int row) {
      const int offset = swizzled<kRowBytes>(row, column / 4, step * 8, 4 * n + 2 * i) + column % 4 * 4;
      return *reinterpret_cast<const std::uint32_t*>(tile + offset);
    };
    b[i] = Operands::key(at(key), at(key + 1));
  }
}

// float32: a number is the sum of two that have the 11 significant bits of tf32, and three of their four products count
// (kProducts 3), or it is the first alone (1).
template <int kProducts>
struct OperandsTf32 {
  static constexpr int kElementBytes = 4, kStepKeys = 8;
  struct Number {
    std::uint32_t high, low;
  };
  struct A {
    std::uint32_t high[4], low[4];
  };
  struct B {
    std::uint32_t high[2], low[2];
  };

  // To nearest, and what is left, of which the unit reads 11 bits. Of numbers that are not finite at least one is not.
  __device__ static Number split(std::uint32_t word) {
    const std::uint32_t high = (word + 0x1000u) & 0xffffe000u;
    // Rounded, 0x7fffffff would be no NaN, and cut off, 0x7f800001.
    if constexpr (kProducts == 1) return {(word & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : high, 0};
    return {high, __float_as_uint(__fsub_rn(__uint_as_float(word), __uint_as_float(high)))};
  }
  __device__ static A query(const std::uint32_t (&r)[4]) {
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Number x = split(r[i]);
      a.high[i] = x.high;
      a.low[i] = x.low;
    }
    return a;
  }
  __device__ static B key(std::uint32_t b0, std::uint32_t b1) {
    const Number x = split(b0), y = split(b1);
    return {{x.high, y.high}, {x.low, y.low}};
  }
  // Smallest products first.
  __device__ static void multiply(float (&d)[4], const A& a, const B& b) {
    if constexpr (kProducts == 3) {
      mma_16x8x8_tf32(d, a.low, b.high[0], b.high[1]);
      mma_16x8x8_tf32(d, a.high, b.low[0], b.low[1]);
    }
    mma_16x8x8_tf32(d, a.high, b.high[0], b.high[1]);
  }

  template <int kTiles>
  struct Weights {
    std::uint32_t word[kTiles][4];
    __device__ void take(const float (&s)[kTiles][4]) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) word[j][i % 2 * 2 + i / 2] = __float_as_uint(s[j][i]);
    }
    __device__ A fragment(int step) const { return query(word[step]); }
  };
  template <int kRowBytes>
  __device__ static void values(const char* tile, int step, int n, B (&b)[2]) {
    float_values<OperandsTf32, kRowBytes>(tile, step, n, b);
  }
};

// float32: a number is the sum of two bfloat16 numbers, of whose four products three count: half the time of three of tf32.
struct OperandsBfloatPairs {
  static constexpr int kElementBytes = 4, kStepKeys = 8;
  struct A {
    std::uint32_t high[2], low[2];  // of rows g and g + 8
  };
  struct B {
    std::uint32_t high, low;
  };

  // Two neighbours, to nearest, and what is left of them. Of numbers that are not finite at least one is not.
  __device__ static B key(std::uint32_t b0, std::uint32_t b1) {
    const std::uint32_t high = pack_16<Dtype::bfloat16>(__uint_as_float(b0), __uint_as_float(b1));
    const float left0 = __fsub_rn(__uint_as_float(b0), __uint_as_float(high << 16));
    const float left1 = __fsub_rn(__uint_as_float(b1), __uint_as_float(high & 0xffff0000u));
    return {high, pack_16<Dtype::bfloat16>(left0, left1)};
  }
  __device__ static A rows(std::uint32_t upper0, std::uint32_t upper1, std::uint32_t lower0, std::uint32_t lower1) {
    const B upper = key(upper0, upper1), lower = key(lower0, lower1);
    return {{upper.high, lower.high}, {upper.low, lower.low}};
  }
  // Coordinates t and t + 4 are neighbours here, of queries and of keys.
  __device__ static A query(const std::uint32_t (&r)[4]) { return rows(r[0], r[2], r[1], r[3]); }
  // Smallest products first; the others are 16 products of 8 coordinates.
  __device__ static void multiply(float (&d)[4], const A& a, const B& b) {
    mma_16x8x8(d, a.high[0], a.high[1], b.low);
    mma_16x8x16<Dtype::bfloat16>(d, {a.low[0], a.low[1], a.high[0], a.high[1]}, b.high, b.high);
  }

  template <int kTiles>
  struct Weights {
    std::uint32_t word[kTiles][4];
    __device__ void take(const float (&s)[kTiles][4]) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) word[j][i] = __float_as_uint(s[j][i]);
    }
    __device__ A fragment(int step) const {
      const auto& w = word[step];
      return rows(w[0], w[1], w[2], w[3]);
    }
  };
  template <int kRowBytes>
  __device__ static void values(const char* tile, int step, int n, B (&b)[2]) {
    float_values<OperandsBfloatPairs, kRowBytes>(tile, step, n, b);
  }
};

}  // namespace maskattn::cuda
