// Stacks that one thread of the host switches between.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace maskattn::cuda::emulated {

// A fiber runs its function to the end, with pauses. Whoever resumes it and it itself take turns on one thread.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The function must not throw. Called where the fiber has not begun or its function has returned.
  void begin(void (*function)(void*), void* argument);
  void resume();  // until it pauses or ends
  void pause();   // from within
  bool ended() const { return ended_; }

 private:
  static void enter();
  void switch_to_fiber();
  void switch_to_caller();

  void (*function_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool ended_ = true;
  char* stack_;
#if defined(__x86_64__)
  void *here_ = nullptr, *caller_ = nullptr;  // stack pointers
#else
  ucontext_t here_, caller_;
#endif
  // What AddressSanitizer wants to know about stacks.
  void *fake_here_ = nullptr, *fake_caller_ = nullptr;
  const void* caller_stack_ = nullptr;
  std::size_t caller_size_ = 0;
};

}  // namespace maskattn::cuda::emulated
