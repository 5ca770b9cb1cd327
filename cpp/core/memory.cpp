#include "memory.hpp"

#include <memory>
#include <new>

namespace maskattn {

void* thread_memory(std::size_t bytes) {
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{kAlign}); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t size = 0;
  if (size < bytes) {
    memory.reset();
    size = 0;
    memory.reset(::operator new(bytes, std::align_val_t{kAlign}));
    size = bytes;
  }
  return memory.get();
}

}  // namespace maskattn
