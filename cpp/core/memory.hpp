// Scratch memory of a thread.
#pragma once

#include <cstddef>

namespace maskattn {

inline constexpr std::size_t kAlign = 64;

// At least `bytes` bytes, aligned to a cache line; the same memory at every call from one thread, so its user must be done
// with it before the next. It grows, never shrinks, and is freed with its thread.
void* thread_memory(std::size_t bytes);

}  // namespace maskattn
