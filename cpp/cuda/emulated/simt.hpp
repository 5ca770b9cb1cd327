// CUDA's threads on the host, for tests: blocks run one after another, the threads of a block as fibers that take turns where
// they wait for each other. What CUDA leaves undefined is looked for: threads that wait for others that never come, lanes that
// meet in different operations, shared memory written past its end. Shared memory is NaN where a block has not written it.
//
// Instructions of a whole warp or warpgroup (mma, wgmma, ldmatrix) are made of collective(); what a thread waits for that is no
// barrier (mbarriers) of wait_until().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "cuda/emulated/words.hpp"

namespace maskattn::cuda::emulated {

inline constexpr int kWarp = 32, kWarpgroup = 128, kMostThreads = 1024;
inline constexpr std::size_t kMostShared = 227 * 1024;

// In which order blocks, warps and lanes get their turns. A kernel whose results depend on it lacks a barrier.
enum class Order : std::uint8_t { forward, reverse, shuffled };

struct Settings {
  Order order = Order::forward;
  std::uint32_t seed = 1;       // of shuffled
  int compute_capability = 90;  // what device() reports
};
Settings& settings();

// A reference to a function: what it refers to outlives it.
template <class Signature>
class FunctionRef;
template <class Result, class... Arguments>
class FunctionRef<Result(Arguments...)> {
 public:
  template <class Function>
  FunctionRef(Function& function)
      : object_(const_cast<void*>(static_cast<const void*>(&function))),
        call_([](void* object, Arguments... arguments) -> Result { return (*static_cast<Function*>(object))(arguments...); }) {}
  Result operator()(Arguments... arguments) const { return call_(object_, arguments...); }

 private:
  void* object_;
  Result (*call_)(void*, Arguments...);
};

// Runs `body` once for each thread of each block. Throws std::invalid_argument for what no device could launch,
// std::runtime_error for a deadlock, lanes that diverge, or memory that was overrun, and whatever a thread throws.
void run_grid_of(dim3 grid, dim3 block, std::size_t shared_bytes, FunctionRef<void()> body);
template <class Body>
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const Body& body) {
  run_grid_of(grid, block, shared_bytes, FunctionRef<void()>(body));
}

// Of the block that runs. Addresses are 32-bit numbers as in PTX, from 1024 on, multiples of 1024 where the pointers are.
void* dynamic_shared_memory();
std::uint32_t shared_address(const void* pointer);
void* shared_pointer(std::uint32_t address);

// Threads of the block that have arrived at a barrier go on when there are `threads` of them; 0: when all that have not returned
// have. Who does not wait goes on at once.
void barrier(int id, int threads, bool wait);

// This thread waits until ready() says so; it is asked again whenever other threads have moved. `what` names the operation.
void wait_until_ready(const char* what, FunctionRef<bool()> ready);
template <class Ready>
void wait_until(const char* what, const Ready& ready) {
  if (!ready()) wait_until_ready(what, FunctionRef<bool()>(ready));
}

// All lanes of a group (32 or 128 neighbours) that the mask names arrive with a pointer; one of them executes function(lanes),
// with null for lanes that are not named; then all go on. Lanes must agree about name and mask.
void gather(const char* name, int group, std::uint32_t mask, void* mine, FunctionRef<void(void* const*)> function);

// The same, typed: `mine` is this lane's registers, lanes[i] those of lane i. `function` must be the same for all.
template <int Group = kWarp, class Lane, class Function>
void collective(const char* name, Lane& mine, const Function& function, std::uint32_t mask = 0xffffffffu) {
  const auto call = [&](void* const* lanes) {
    std::array<Lane*, Group> typed;
    for (int i = 0; i < Group; ++i) typed[static_cast<std::size_t>(i)] = static_cast<Lane*>(lanes[i]);
    function(typed);
  };
  gather(name, Group, mask, &mine, FunctionRef<void(void* const*)>(call));
}

int thread_in_block();

}  // namespace maskattn::cuda::emulated

#include "cuda/emulated/warp.hpp"
