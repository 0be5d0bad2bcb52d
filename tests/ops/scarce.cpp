// Memory that runs out at a chosen allocation: to be loaded before the library under test.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

static std::atomic<long> left{-1};  // allocations before the one that fails; below 0 none does

extern "C" void fail_at(long k) {
  left = k;
}

static void* allocated(std::size_t bytes, std::size_t alignment) {
  if (left >= 0 && left-- == 0) throw std::bad_alloc();
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment < sizeof(void*) ? sizeof(void*) : alignment, bytes ? bytes : 1))
    throw std::bad_alloc();
  return memory;
}

void* operator new(std::size_t bytes) {
  return allocated(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocated(bytes, std::size_t(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
