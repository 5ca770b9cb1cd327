// Scratch memory of a thread.
#pragma once

#include <cstddef>

namespace maskattn {

inline constexpr std::size_t kAlign = 64;

// What a thread's memory is for; each use has its own.
enum class Use { scratch, parts };

// At least `bytes` bytes, aligned to a cache line; the same memory at every call from one thread for one use, so its user must be
// done with it before the next. It grows, never shrinks, and is freed with its thread.
void* thread_memory(std::size_t bytes, Use use = Use::scratch);

}  // namespace maskattn
