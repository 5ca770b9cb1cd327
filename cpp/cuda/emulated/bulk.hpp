// mbarrier and cp.async.bulk.tensor as software. Bytes arrive when someone waits for them, as late as they may.
#pragma once

#include <stdexcept>
#include <vector>

namespace maskattn::cuda {

struct alignas(64) TensorMap {
  const char* data;
  std::uint64_t extent[4], stride[3];
};

namespace emulated {

struct Mbarrier {
  std::uint16_t expected, pending;
  std::uint32_t phase : 1, bytes : 31;

  void settle() {
    if (pending || bytes) return;
    phase ^= 1;
    pending = expected;
  }
};
static_assert(sizeof(Mbarrier) == 8);

struct BoxCopy {
  std::uint64_t* barrier;
  char* to;
  const TensorMap* map;
  int at[4];

  // Rows of 128 bytes, chunks exchanged by the bits of the address: 4 to 6 with 7 to 9.
  void run() const {
    for (int row = 0; row < 64; ++row)
      for (int column = 0; column < 64; ++column) {
        const std::uint64_t c[] = {static_cast<std::uint64_t>(at[0] + column), static_cast<std::uint64_t>(at[1] + row),
                                   static_cast<std::uint64_t>(at[2]), static_cast<std::uint64_t>(at[3])};
        std::uint16_t x = 0;
        bool inside = true;
        for (int i = 0; i < 4; ++i) inside = inside && c[i] < map->extent[i];
        if (inside)
          std::memcpy(&x, map->data + 2 * c[0] + map->stride[0] * c[1] + map->stride[1] * c[2] + map->stride[2] * c[3], 2);
        const std::uint32_t address = shared_address(to) + static_cast<std::uint32_t>(128 * row + 2 * column);
        std::memcpy(shared_pointer(address ^ (address >> 7 & 7) << 4), &x, 2);
      }
  }
};

inline std::vector<BoxCopy>& box_copies() {
  static thread_local std::vector<BoxCopy> under_way;
  return under_way;
}

}  // namespace emulated

inline void barrier_init(std::uint64_t* barrier, int arrivals) {
  std::erase_if(emulated::box_copies(), [&](const auto& copy) { return copy.barrier == barrier; });  // of a block that has failed
  const auto n = static_cast<std::uint16_t>(arrivals);
  *barrier = std::bit_cast<std::uint64_t>(emulated::Mbarrier{n, n, 0, 0});
}
inline void barrier_init_fence() {}
inline void barrier_arrive_expect(std::uint64_t* barrier, int bytes) {
  auto state = std::bit_cast<emulated::Mbarrier>(*barrier);
  if (state.pending == 0) throw std::logic_error("mbarrier: more arrivals than it was made for");
  state.bytes += static_cast<std::uint32_t>(bytes);
  --state.pending;
  state.settle();
  *barrier = std::bit_cast<std::uint64_t>(state);
}
inline void barrier_arrive(std::uint64_t* barrier) { barrier_arrive_expect(barrier, 0); }

inline void barrier_wait(std::uint64_t* barrier, unsigned parity) {
  emulated::wait_until("mbarrier.try_wait", [=] {
    auto& copies = emulated::box_copies();
    for (std::size_t i = 0; i < copies.size();) {
      if (copies[i].barrier != barrier) {
        ++i;
        continue;
      }
      copies[i].run();
      copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(i));
      auto state = std::bit_cast<emulated::Mbarrier>(*barrier);
      state.bytes -= 64 * 64 * 2;
      state.settle();
      *barrier = std::bit_cast<std::uint64_t>(state);
    }
    return std::bit_cast<emulated::Mbarrier>(*barrier).phase != parity;
  });
}

inline void copy_box(void* to, const TensorMap& map, int column, int row, int h, int b, std::uint64_t* barrier) {
  if (emulated::shared_address(to) % 1024) throw std::runtime_error("cp.async.bulk.tensor: a panel begins at a multiple of 1024");
  emulated::box_copies().push_back({barrier, static_cast<char*>(to), &map, {column, row, h, b}});
}
inline void prefetch_map(const TensorMap&) {}
inline void fence_for_async() {}

}  // namespace maskattn::cuda
