#include "recycled.hpp"

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace maskattn {
namespace {

constexpr std::size_t kLeast = std::size_t{1} << 20;  // bytes of an array that is worth it
constexpr std::size_t kMostKept = std::size_t{64} << 20;
constexpr std::align_val_t kPage{std::size_t{1} << 21};  // a huge one

struct Block {
  void* data;
  std::size_t size;
};

// Blocks that no array uses, the oldest first.
class FreeBlocks {
 public:
  Block take(std::size_t bytes) {
    {
      const std::lock_guard lock(guard_);
      auto best = blocks_.end();
      for (auto b = blocks_.begin(); b != blocks_.end(); ++b)
        if (b->size >= bytes && b->size / 2 <= bytes && (best == blocks_.end() || b->size < best->size)) best = b;
      if (best != blocks_.end()) {
        const Block found = *best;
        blocks_.erase(best);
        return found;
      }
      // Blocks that are too small make room for the new one.
      for (auto b = blocks_.begin(); b != blocks_.end();) b = b->size < bytes ? drop(b) : b + 1;
    }
    const Block block{::operator new(bytes, kPage), bytes};
#ifdef MADV_HUGEPAGE
    madvise(block.data, bytes, MADV_HUGEPAGE);
#endif
    return block;
  }

  void give_back(const Block& block) {
    const std::lock_guard lock(guard_);
    blocks_.push_back(block);
    for (std::size_t kept = bytes(); kept > kMostKept; drop(blocks_.begin())) kept -= blocks_.front().size;
  }

  std::size_t kept() {
    const std::lock_guard lock(guard_);
    return bytes();
  }

 private:
  using Blocks = std::vector<Block>;
  Blocks::iterator drop(Blocks::iterator block) {
    ::operator delete(block->data, kPage);
    return blocks_.erase(block);
  }
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Block& block : blocks_) sum += block.size;
    return sum;
  }

  std::mutex guard_;
  Blocks blocks_;
};

// Never destroyed: arrays may outlive everything else.
FreeBlocks& free_blocks() {
  static auto* const blocks = new FreeBlocks;
  return *blocks;
}

}  // namespace

py::array recycled_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
  auto bytes = static_cast<std::size_t>(dtype.itemsize());
  for (const py::ssize_t length : shape) bytes *= static_cast<std::size_t>(length);
  if (bytes < kLeast) return py::array(dtype, shape);
  auto* const block = new Block(free_blocks().take(bytes));
  const py::capsule owner(block, [](void* p) {
    const auto* const held = static_cast<Block*>(p);
    free_blocks().give_back(*held);
    delete held;
  });
  return py::array(dtype, shape, block->data, owner);
}

std::size_t recyclable_bytes() { return free_blocks().kept(); }

}  // namespace maskattn
