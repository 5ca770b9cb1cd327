#include "cuda/emulated/simt.hpp"

#include <stdexcept>
#include <string>

#include "cuda/emulated/block.hpp"

namespace maskattn::cuda::emulated {

namespace {

thread_local std::unique_ptr<Block> block;

Block& the_block() {
  if (!block || !blockDim.x) throw std::logic_error("a device function was called outside a kernel");
  return *block;
}

void refuse(const std::string& what) { throw std::invalid_argument("a launch that no device can do: " + what); }

}  // namespace

Settings& settings() {
  static Settings all;
  return all;
}

void run_grid_of(dim3 grid, dim3 extent, std::size_t shared_bytes, FunctionRef<void()> body) {
  const std::uint64_t threads = std::uint64_t{extent.x} * extent.y * extent.z;
  if (threads == 0 || threads > kMostThreads || extent.z > 64) refuse("blocks of " + text(extent) + " threads");
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) refuse("a grid of " + text(grid) + " blocks");
  if (shared_bytes > kMostShared) refuse(std::to_string(shared_bytes) + " bytes of shared memory");
  if (block && blockDim.x) throw std::logic_error("a kernel was launched from a kernel");
  if (!block) block = std::make_unique<Block>();
  block->prepare(extent, shared_bytes);
  struct Scope {
    ~Scope() { blockDim = dim3(0, 0, 0); }
  } scope;
  blockDim = extent;
  gridDim = grid;
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  const bool backwards = settings().order == Order::reverse;
  for (std::uint64_t n = 0; n < blocks; ++n) {
    const std::uint64_t i = backwards ? blocks - 1 - n : n;
    const auto x = static_cast<unsigned>(i % grid.x), y = static_cast<unsigned>(i / grid.x % grid.y);
    block->run({x, y, static_cast<unsigned>(i / grid.x / grid.y)}, body);
  }
}

void* dynamic_shared_memory() { return the_block().shared(); }
std::uint32_t shared_address(const void* pointer) {
  Block& b = the_block();
  const std::ptrdiff_t at = static_cast<const char*>(pointer) - b.shared();
  if (at < 0 || at > static_cast<std::ptrdiff_t>(b.shared_bytes()))
    throw std::runtime_error("an address outside the block's dynamic shared memory");
  return 1024 + static_cast<std::uint32_t>(at);
}
void* shared_pointer(std::uint32_t address) {
  Block& b = the_block();
  if (address < 1024 || address - 1024 > b.shared_bytes())
    throw std::runtime_error("an address outside the block's dynamic shared memory");
  return b.shared() + (address - 1024);
}

void barrier(int id, int threads, bool wait) { the_block().barrier(id, threads, wait); }
void wait_until_ready(const char* what, FunctionRef<bool()> ready) { the_block().wait_until_ready(what, ready); }
void gather(const char* name, int group, std::uint32_t mask, void* mine, FunctionRef<void(void* const*)> function) {
  the_block().gather(name, group, mask, mine, function);
}
int thread_in_block() { return the_block().current; }
void fail_shuffle(const char* name) {
  throw std::runtime_error(std::string(name) + " reads from a lane that its mask does not name");
}

}  // namespace maskattn::cuda::emulated
