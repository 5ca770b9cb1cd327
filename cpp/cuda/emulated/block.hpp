// A block of emulated threads: who runs, who waits for what.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/emulated/fiber.hpp"
#include "cuda/emulated/simt.hpp"

namespace maskattn::cuda::emulated {

struct Thread {
  enum class State : std::uint8_t { ready, waiting, returned } state;
  const char* why;                   // what it waits for
  const FunctionRef<bool()>* ready;  // asked while it waits, if there is one
  uint3 index;
};

struct Barrier {
  int arrived = 0, expected = 0;
  std::vector<int> waiting;
};

// Lanes that have arrived at an operation of their group.
struct Gathering {
  const char* name;
  int first, size;
  std::uint32_t mask;
  int missing;
  std::array<void*, kWarpgroup> lanes;

  // Whether this lane cannot be elsewhere: of a warp all lanes that are named, of a warpgroup those of the warps that have begun.
  bool binds(int lane) const {
    if (size == kWarp) return mask >> lane & 1;
    const auto warp = lanes.begin() + lane / kWarp * kWarp;
    return std::any_of(warp, warp + kWarp, [](const void* arrived) { return arrived != nullptr; });
  }
};

inline std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

class Block {
 public:
  void prepare(dim3 extent, std::size_t shared_bytes);
  void run(uint3 index, FunctionRef<void()> body);

  void barrier(int id, int threads, bool wait);
  void wait_until_ready(const char* what, FunctionRef<bool()> ready);
  void gather(const char* name, int group, std::uint32_t mask, void* mine, FunctionRef<void(void* const*)> function);

  int current = 0;
  char* shared() { return shared_.get() + kGuard; }
  std::size_t shared_bytes() const { return shared_bytes_; }

 private:
  static constexpr std::size_t kGuard = 1024;
  static constexpr unsigned char kGuardByte = 0xa5, kUnwritten = 0xff;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };

  void suspend(const char* why, const FunctionRef<bool()>* ready);
  void wake(int thread) { threads_[static_cast<std::size_t>(thread)].state = Thread::State::ready; }
  void release(Barrier& b);
  static void thread_main(void* block);
  bool take_turn(int thread);
  void take_turns();
  void cancel();
  void check_guards() const;
  std::string where() const { return "block " + text({blockIdx.x, blockIdx.y, blockIdx.z}); }
  std::string who_waits() const;
  std::vector<int> order_of(int count, std::mt19937& random) const;

  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::array<Barrier, 16> barriers_;
  std::vector<Gathering> gatherings_;
  std::unique_ptr<char, Free> shared_;
  std::size_t shared_bytes_ = 0;
  dim3 extent_;
  int count_ = 0, running_ = 0;
  const FunctionRef<void()>* body_ = nullptr;
  std::exception_ptr failure_;
  bool cancelled_ = false;
};

}  // namespace maskattn::cuda::emulated
