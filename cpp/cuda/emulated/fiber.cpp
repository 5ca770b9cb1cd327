#include "cuda/emulated/fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define MASKATTN_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MASKATTN_ASAN 1
#endif
#endif
#if defined(MASKATTN_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves what the calling convention asks a function to keep, and the stack pointer; takes those of the other side.
extern "C" void maskattn_switch_stack(void** save, void* load);
asm(R"(
.text
.hidden maskattn_switch_stack
.globl maskattn_switch_stack
.type maskattn_switch_stack, @function
maskattn_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size maskattn_switch_stack, .-maskattn_switch_stack
)");
#endif

namespace maskattn::cuda::emulated {

namespace {

constexpr std::size_t kStack = 256 * 1024;  // of which pages are taken as they are touched
thread_local Fiber* starting = nullptr;

std::size_t page() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStack + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page(), PROT_NONE);  // stacks grow downwards: what overflows is stopped here
  stack_ = static_cast<char*>(memory) + page();
}

Fiber::~Fiber() { munmap(stack_ - page(), kStack + page()); }

void Fiber::begin(void (*function)(void*), void* argument) {
  function_ = function;
  argument_ = argument;
  ended_ = false;
#if defined(MASKATTN_ASAN)
  __asan_unpoison_memory_region(stack_, kStack);
  fake_here_ = nullptr;
#endif
#if defined(__x86_64__)
  // Six registers, the address to "return" to, and none to return from there; functions begin 8 bytes past a multiple of 16.
  void** top = reinterpret_cast<void**>(stack_ + kStack) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(&Fiber::enter);
  here_ = top;
#else
  getcontext(&here_);
  here_.uc_stack.ss_sp = stack_;
  here_.uc_stack.ss_size = kStack;
  here_.uc_link = nullptr;
  makecontext(&here_, &Fiber::enter, 0);
#endif
}

void Fiber::enter() {
  Fiber* self = starting;
#if defined(MASKATTN_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_size_);
#endif
  self->function_(self->argument_);
  self->ended_ = true;
  self->switch_to_caller();
  __builtin_unreachable();
}

void Fiber::resume() {
  starting = this;
#if defined(MASKATTN_ASAN)
  __sanitizer_start_switch_fiber(&fake_caller_, stack_, kStack);
#endif
  switch_to_fiber();
#if defined(MASKATTN_ASAN)
  __sanitizer_finish_switch_fiber(fake_caller_, nullptr, nullptr);
#endif
}

void Fiber::pause() {
  switch_to_caller();
#if defined(MASKATTN_ASAN)
  __sanitizer_finish_switch_fiber(fake_here_, &caller_stack_, &caller_size_);
#endif
}

void Fiber::switch_to_fiber() {
#if defined(__x86_64__)
  maskattn_switch_stack(&caller_, here_);
#else
  swapcontext(&caller_, &here_);
#endif
}

void Fiber::switch_to_caller() {
#if defined(MASKATTN_ASAN)
  __sanitizer_start_switch_fiber(ended_ ? nullptr : &fake_here_, caller_stack_, caller_size_);
#endif
#if defined(__x86_64__)
  maskattn_switch_stack(&here_, caller_);
#else
  swapcontext(&here_, &caller_);
#endif
}

}  // namespace maskattn::cuda::emulated
