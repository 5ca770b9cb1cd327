// CUDA's barriers, shuffles, votes and atomics, of emulated threads.
#pragma once

#include <bit>

inline void __syncthreads() { maskattn::cuda::emulated::barrier(0, 0, true); }

inline void __syncwarp(std::uint32_t mask = 0xffffffffu) {
  char nothing = 0;
  maskattn::cuda::emulated::collective("__syncwarp", nothing, [](const auto&) {}, mask);
}

namespace maskattn::cuda::emulated {

[[noreturn]] void fail_shuffle(const char* name);

// What the lane that `from` names had; a lane that the mask does not name has nothing to give.
template <class T>
T shuffle(const char* name, std::uint32_t mask, T value, int from) {
  struct Lane {
    T value, result;
    int from;
  } mine{value, value, from};
  collective(
      name, mine,
      [&](const std::array<Lane*, kWarp>& lanes) {
        for (Lane* lane : lanes) {
          if (!lane) continue;
          const Lane* giver = lanes[static_cast<std::size_t>(lane->from)];
          if (!giver) fail_shuffle(name);
          lane->result = giver->value;
        }
      },
      mask);
  return mine.result;
}

inline std::uint32_t ballot(const char* name, std::uint32_t mask, bool vote) {
  struct Lane {
    bool vote;
    std::uint32_t votes;
  } mine{vote, 0};
  collective(
      name, mine,
      [](const std::array<Lane*, kWarp>& lanes) {
        std::uint32_t votes = 0;
        for (std::size_t i = 0; i < lanes.size(); ++i)
          if (lanes[i] && lanes[i]->vote) votes |= 1u << i;
        for (Lane* lane : lanes)
          if (lane) lane->votes = votes;
      },
      mask);
  return mine.votes;
}

template <class T, class Combine>
T reduce(const char* name, std::uint32_t mask, T value, const Combine& combine) {
  collective(
      name, value,
      [&](const std::array<T*, kWarp>& lanes) {
        T all{};
        bool any = false;
        for (T* lane : lanes) {
          if (!lane) continue;
          all = any ? combine(all, *lane) : *lane;
          any = true;
        }
        for (T* lane : lanes)
          if (lane) *lane = all;
      },
      mask);
  return value;
}

inline int lane() { return thread_in_block() % kWarp; }

}  // namespace maskattn::cuda::emulated

template <class T>
T __shfl_sync(std::uint32_t mask, T value, int from, int width = 32) {
  const int lane = maskattn::cuda::emulated::lane();
  return maskattn::cuda::emulated::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T>
T __shfl_up_sync(std::uint32_t mask, T value, unsigned delta, int width = 32) {
  const int lane = maskattn::cuda::emulated::lane(), from = lane - static_cast<int>(delta);
  return maskattn::cuda::emulated::shuffle("__shfl_up_sync", mask, value, from < (lane & ~(width - 1)) ? lane : from);
}
template <class T>
T __shfl_down_sync(std::uint32_t mask, T value, unsigned delta, int width = 32) {
  const int lane = maskattn::cuda::emulated::lane(), from = lane + static_cast<int>(delta);
  return maskattn::cuda::emulated::shuffle("__shfl_down_sync", mask, value, from > (lane | (width - 1)) ? lane : from);
}
template <class T>
T __shfl_xor_sync(std::uint32_t mask, T value, int with, int width = 32) {
  const int lane = maskattn::cuda::emulated::lane(), from = lane ^ with;
  return maskattn::cuda::emulated::shuffle("__shfl_xor_sync", mask, value, from > (lane | (width - 1)) ? lane : from);
}

inline std::uint32_t __ballot_sync(std::uint32_t mask, int vote) {
  return maskattn::cuda::emulated::ballot("__ballot_sync", mask, vote != 0);
}
inline int __any_sync(std::uint32_t mask, int vote) {
  return maskattn::cuda::emulated::ballot("__any_sync", mask, vote != 0) != 0;
}
inline int __all_sync(std::uint32_t mask, int vote) {
  return maskattn::cuda::emulated::ballot("__all_sync", mask, vote != 0) == mask;
}
template <class T>
T __reduce_add_sync(std::uint32_t mask, T value) {
  return maskattn::cuda::emulated::reduce("__reduce_add_sync", mask, value, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_max_sync(std::uint32_t mask, T value) {
  return maskattn::cuda::emulated::reduce("__reduce_max_sync", mask, value, [](T a, T b) { return a < b ? b : a; });
}
template <class T>
T __reduce_min_sync(std::uint32_t mask, T value) {
  return maskattn::cuda::emulated::reduce("__reduce_min_sync", mask, value, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_or_sync(std::uint32_t mask, T value) {
  return maskattn::cuda::emulated::reduce("__reduce_or_sync", mask, value, [](T a, T b) { return a | b; });
}
inline int __syncthreads_or(int vote) {
  // Two barriers, as the device has it: nobody may vote again before all have read.
  static thread_local int any;
  __syncthreads();
  if (maskattn::cuda::emulated::thread_in_block() == 0) any = 0;
  __syncthreads();
  any |= vote != 0;
  __syncthreads();
  return any;
}

// Blocks and threads of a launch take turns on one thread of the host, so that nothing interrupts these.
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T atomicExch(T* at, T value) {
  const T old = *at;
  *at = value;
  return old;
}
template <class T>
T atomicAdd(T* at, T value) {
  return atomicExch(at, static_cast<T>(*at + value));
}
template <class T>
T atomicMax(T* at, T value) {
  return atomicExch(at, *at < value ? value : *at);
}
template <class T>
T atomicMin(T* at, T value) {
  return atomicExch(at, value < *at ? value : *at);
}
template <class T>
T atomicOr(T* at, T value) {
  return atomicExch(at, static_cast<T>(*at | value));
}
template <class T>
T atomicAnd(T* at, T value) {
  return atomicExch(at, static_cast<T>(*at & value));
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
  return atomicExch(at, *at == expected ? value : *at);
}
inline unsigned atomicInc(unsigned* at, unsigned last) { return atomicExch(at, *at >= last ? 0u : *at + 1); }
