// What the multipliers can do at most: the measure for kernels that are bound by arithmetic.
#pragma once

namespace maskattn::MASKATTN_ISA {
namespace {

template <class T>
void multiply_add(std::int64_t rounds, T* sums) {
  Vec<T> acc[kProbeChains];
  MASKATTN_UNROLLED(i, kProbeChains) acc[i] = splat(sums[i]);
  const Vec<T> half = splat(T(0.5));
  for (std::int64_t round = 0; round < rounds; ++round)
    MASKATTN_UNROLLED(i, kProbeChains) acc[i] = fma(acc[i], half, half);
  MASKATTN_UNROLLED(i, kProbeChains) sums[i] = acc[i][0];
}

}  // namespace
}  // namespace maskattn::MASKATTN_ISA
