#include "memory.hpp"

#include <memory>
#include <new>

namespace maskattn {

void* thread_memory(std::size_t bytes, Use use) {
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{kAlign}); }
  };
  struct Memory {
    std::unique_ptr<void, Free> data;
    std::size_t size = 0;
  };
  thread_local Memory memories[2];
  Memory& memory = memories[static_cast<int>(use)];
  if (memory.size < bytes) {
    memory.data.reset();
    memory.size = 0;
    memory.data.reset(::operator new(bytes, std::align_val_t{kAlign}));
    memory.size = bytes;
  }
  return memory.data.get();
}

}  // namespace maskattn
