// A function that can be left in its middle, and gone on with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__x86_64__)
#define DML_OWN_FIBERS
#else
#include <ucontext.h>
#endif

namespace emulation {

constexpr size_t STACK = 256 * 1024;

#ifdef DML_OWN_FIBERS
// Keeps what a function has to keep on the stack at hand, and goes on with another one. The compiler may not
// look inside: what runs on the other stack uses all other registers and any memory.
__attribute__((naked, noipa)) inline void switch_stacks(void** /* rdi */, void* /* rsi */) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}
#endif

class Fiber {
 public:
  // `run` never ends.
  void begin(void (*run)()) {
#ifdef DML_OWN_FIBERS
    void** top = reinterpret_cast<void**>(uintptr_t(stack_.get() + STACK - unused_) & ~uintptr_t(15));
    *--top = nullptr;  // where `run` would return to
    *--top = reinterpret_cast<void*>(run);
    for (int k = 0; k < 6; k++) *--top = nullptr;
    inside_ = top;
#else
    getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack_.get();
    inside_.uc_stack.ss_size = STACK;
    inside_.uc_link = nullptr;
    makecontext(&inside_, run, 0);
#endif
  }

  void enter() { change(outside_, inside_); }
  void leave() { change(inside_, outside_); }

 private:
#ifdef DML_OWN_FIBERS
  using Place = void*;
  static void change(Place& from, Place& to) { switch_stacks(&from, to); }
#else
  using Place = ucontext_t;
  static void change(Place& from, Place& to) { swapcontext(&from, &to); }
#endif

  // Stacks that all began at the same place of a page would push each other out of the cache.
  static size_t stagger() {
    static thread_local size_t made = 0;
    return made++ % 61 * 1088;
  }

  std::unique_ptr<char[]> stack_{new char[STACK]};
  const size_t unused_ = stagger();
  Place inside_{}, outside_{};
};

}  // namespace emulation
