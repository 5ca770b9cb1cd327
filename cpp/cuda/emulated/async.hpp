// cp.async as software: copies happen when they are waited for, as late as they may.
#pragma once

#include <deque>
#include <stdexcept>
#include <vector>

namespace maskattn::cuda {
namespace emulated {

struct AsyncCopy {
  char* to;
  const char* from;
  int bytes;
};

// Of one thread of a block: groups that are under way, and the copies since the last commit.
struct AsyncCopies {
  uint3 block;
  std::deque<std::vector<AsyncCopy>> groups;
  std::vector<AsyncCopy> open;
};

inline AsyncCopies& async_copies() {
  static thread_local std::vector<AsyncCopies> of(kMostThreads);
  AsyncCopies& mine = of[static_cast<std::size_t>(thread_in_block())];
  if (mine.block.x != blockIdx.x || mine.block.y != blockIdx.y || mine.block.z != blockIdx.z)
    mine = {blockIdx, {}, {}};  // what a block leaves that has failed
  return mine;
}

}  // namespace emulated

inline void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 || (bytes && reinterpret_cast<std::uintptr_t>(from) % 16))
    throw std::runtime_error("cp.async: an address is no multiple of 16");
  emulated::async_copies().open.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes});
}

inline void commit_copies() {
  emulated::AsyncCopies& mine = emulated::async_copies();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}

template <int kGroups>
void wait_copies() {
  for (auto& groups = emulated::async_copies().groups; groups.size() > kGroups; groups.pop_front())
    for (const emulated::AsyncCopy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      if (copy.bytes) std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    }
}

}  // namespace maskattn::cuda
