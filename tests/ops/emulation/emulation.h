// Runs CUDA kernels on the CPU, for tests: a thread is a fiber, and a block has memory of its own that starts
// full of NaN. device.h includes this file in place of CUDA's own where DML_EMULATED is defined. A warp runs
// as far as it can before the next one does, in ascending order or, with DML_EMULATED_REVERSE set, in
// descending order: what depends on the order lacks a barrier. Copies and products that go on in the
// background are made as late as they may be, when they are waited for, or, in descending order, at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "fiber.h"

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

constexpr size_t SHARED_ALIGNMENT = 1024;
constexpr int WARP = 32;

inline bool in_reverse() {
  static const bool reverse = std::getenv("DML_EMULATED_REVERSE") != nullptr;
  return reverse;
}

inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

struct Thread;

struct Barrier {
  int expected = 0, arrived = 0;
  std::vector<Thread*> waiting;
};

// What goes on in the background, in groups that are waited for in turn.
class Background {
 public:
  void push(std::function<void()> work) {
    if (in_reverse())
      work();
    else
      groups_.back().push_back(std::move(work));
  }
  void end_group() { groups_.emplace_back(); }
  void await(size_t later) {
    for (; groups_.size() > later + 1; groups_.erase(groups_.begin()))
      for (const auto& work : groups_.front()) work();
  }

 private:
  std::vector<std::vector<std::function<void()>>> groups_{1};
};

struct Block;

struct Thread {
  Fiber fiber;
  int index = 0;
  bool done = false, waits = false;  // at a barrier
  void* brought = nullptr;
  Block* block = nullptr;
  Background copies, products;
};

struct Block {
  dim3 index;
  std::vector<Thread*> threads;
  std::vector<Barrier> warps;
  std::vector<int> ready;  // of the threads of a warp, how many are neither done nor wait
  std::map<int, Barrier> named;
  std::map<void*, Background> copies;  // by the barrier that they arrive at
  Barrier all;
  std::unique_ptr<char, decltype(&std::free)> shared{nullptr, std::free};
};

// The blocks that run at a time: one, or all of a grid that has a barrier of its own.
struct Machine {
  dim3 grid, size;
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<Thread>> pool;
  Barrier everyone;
  std::map<int, Barrier> clusters;
  int cluster = 1;
  Thread* current = nullptr;
  const std::function<void()>* body = nullptr;
  uint64_t progress = 0;
};

inline Machine& machine() {
  static thread_local Machine* mine = nullptr;
  if (!mine) {
    static thread_local std::unique_ptr<Machine> owner;  // whose memory a library's share of a thread has not
    owner = std::make_unique<Machine>();
    mine = owner.get();
  }
  return *mine;
}

inline Thread& me() {
  return *machine().current;
}

inline void yield() {
  me().fiber.leave();
}

inline int& ready(const Thread& thread) {
  return thread.block->ready[thread.index / WARP];
}

inline void release(Barrier& barrier) {
  if (!barrier.expected || barrier.arrived < barrier.expected) return;
  barrier.arrived = 0;
  machine().progress++;
  for (Thread* const thread : barrier.waiting) {
    thread->waits = false;
    ready(*thread)++;
  }
  barrier.waiting.clear();
}

// Is counted at a barrier, and goes on.
inline void pass(Barrier& barrier) {
  barrier.arrived++;
  machine().progress++;
  release(barrier);
}

inline void wait(Barrier& barrier) {
  Thread& mine = me();
  barrier.waiting.push_back(&mine);
  mine.waits = true;
  ready(mine)--;
  pass(barrier);
  while (mine.waits) yield();
}

inline Barrier& cluster_of(const Block& block) {
  return machine().clusters[int(block.index.x) / machine().cluster];
}

// A barrier of the block that has a number.
inline Barrier& named(int number, int threads) {
  Barrier& barrier = me().block->named[number];
  barrier.expected = threads;
  return barrier;
}

// A barrier in shared memory: what has still to arrive before a phase ends.
struct Phases {
  int arrivals, pending, bytes, phase;
};

inline void arrive(Phases& phases, int count, int bytes) {
  phases.pending -= count;
  phases.bytes -= bytes;
  machine().progress++;
  if (phases.pending || phases.bytes) return;
  phases.pending = phases.arrivals;
  phases.phase++;
}

// A block of the cluster, and a place of one's own shared memory in that of such a block.
inline Block& of_cluster(int rank) {
  Block* const mine = me().block;
  return mine[rank - int(mine->index.x) % machine().cluster];
}
template <class T>
T* in_block(T* mine, int rank) {
  if (!of_cluster(rank).all.expected) fail("the shared memory of a block that has ended");
  char* const memory = of_cluster(rank).shared.get();
  return reinterpret_cast<T*>(memory + (reinterpret_cast<char*>(mine) - me().block->shared.get()));
}

// Copies in the background, which a phase of a block waits for.
inline void copy(char* to, const char* from, int bytes, Phases& phases, Block& block) {
  Background& copies = block.copies[&phases];
  copies.push([to, from, bytes, &phases] {
    std::memcpy(to, from, size_t(bytes));
    arrive(phases, 0, bytes);
  });
  copies.end_group();
}

// Waits for the end of a phase of a parity.
inline void await(Phases& phases, int parity) {
  me().block->copies[&phases].await(0);
  while ((phases.phase & 1) == parity) {
    yield();
    me().block->copies[&phases].await(0);
  }
}

inline void leave(Barrier& barrier) {
  barrier.expected--;
  release(barrier);
}

inline void enter() {
  (*machine().body)();
  Thread& thread = me();
  thread.done = true;
  ready(thread)--;
  machine().progress++;
  leave(thread.block->all);
  if (thread.block->warps[thread.index / WARP].arrived) fail("a thread ends that its warp waits for");
  leave(thread.block->warps[thread.index / WARP]);
  leave(cluster_of(*thread.block));
  leave(machine().everyone);
  for (;;) yield();
}

// The GPU that is emulated: its compute capability's first number, and what it has.
struct Gpu {
  int capability, multiprocessors;
  size_t shared;
};

inline Gpu gpu() {
#ifdef DML_EMULATED_LARGE
  return {9, 132, 227 * 1024};
#else
  const char* const capability = std::getenv("DML_EMULATED_CAPABILITY");
  return capability && std::atoi(capability) == 8 ? Gpu{8, 4, 99 * 1024} : Gpu{9, 24, 99 * 1024};
#endif
}

// Runs blocks [first, first + count) of the grid side by side.
inline void run(int first, int count, size_t shared) {
  Machine& m = machine();
  const int threads = int(m.size.x * m.size.y * m.size.z), warps = (threads + WARP - 1) / WARP;
  while (m.pool.size() < size_t(count) * threads) m.pool.push_back(std::make_unique<Thread>());
  m.blocks.clear();
  m.blocks.resize(count);
  m.clusters.clear();
  m.everyone = Barrier{count * threads};
  for (int b = 0; b < count; b++) {
    Block& block = m.blocks[b];
    const unsigned linear = unsigned(first + b);
    block.index = dim3{linear % m.grid.x, linear / m.grid.x % m.grid.y, linear / (m.grid.x * m.grid.y)};
    block.all = Barrier{threads};
    block.warps.resize(warps);
    block.ready.resize(warps);
    // exactly as long as asked for, so that the address sanitizer sees what is beyond
    void* memory = nullptr;
    if (posix_memalign(&memory, SHARED_ALIGNMENT, shared)) fail("no memory");
    std::memset(memory, 0xff, shared);
    block.shared.reset(static_cast<char*>(memory));
    cluster_of(block).expected += threads;
    for (int t = 0; t < threads; t++) {
      Thread& thread = *m.pool[size_t(b) * threads + t];
      thread.index = t;
      thread.done = thread.waits = false;
      thread.block = &block;
      thread.copies = thread.products = Background();
      block.threads.push_back(&thread);
      block.warps[t / WARP].expected++;
      block.ready[t / WARP]++;
      thread.fiber.begin(enter);
    }
  }
  const bool reverse = in_reverse();
  const int all = count * warps;
  int left = count * threads;
  const auto run_warp = [&](Block& block, int warp) {
    const int size = std::min(WARP, threads - warp * WARP);
    for (int k = 0; k < size && block.ready[warp]; k++) {
      m.current = block.threads[warp * WARP + (reverse ? size - 1 - k : k)];
      if (m.current->done || m.current->waits) continue;
      m.current->fiber.enter();
      left -= m.current->done;
    }
  };
  while (left) {
    const uint64_t before = m.progress;
    for (int k = 0; k < all; k++) {
      const int next = reverse ? all - 1 - k : k;
      for (uint64_t seen = m.progress + 1; seen != m.progress;) {
        seen = m.progress;
        run_warp(m.blocks[next / warps], next % warps);
      }
    }
    if (m.progress == before) fail("threads wait for each other: a barrier that not all of them reach");
  }
}

inline void launch(dim3 grid, dim3 block, size_t shared, int cluster, bool together,
                   const std::function<void()>& body) {
  Machine& m = machine();
  m.grid = grid, m.size = block, m.cluster = cluster, m.body = &body;
  const int blocks = int(grid.x * grid.y * grid.z), step = together ? blocks : cluster;
  for (int first = 0; first < blocks; first += step) run(first, step, shared);
}

inline Barrier& my_cluster() {
  return cluster_of(*me().block);
}

inline Barrier& my_warp() {
  return me().block->warps[me().index / WARP];
}

// Has all threads of the warp bring something, and calls f(of) once, of(lane) being what that thread brought.
template <class T, class F>
void together(T& mine, const F& f) {
  Barrier& warp = my_warp();
  me().brought = &mine;
  if (warp.arrived + 1 == warp.expected) {
    Thread* const* const threads = &me().block->threads[me().index / WARP * WARP];
    f([&](int lane) -> T& { return *static_cast<T*>(threads[lane]->brought); });
  }
  wait(warp);
}

inline const std::vector<float> HALVES = [] {
  std::vector<float> floats(1 << 16);
  for (int k = 0; k < 1 << 16; k++) {
    const int exponent = k >> 10 & 31, mantissa = k & 1023;
    const float size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(float(mantissa), -24)
                                       : std::ldexp(float(mantissa + 1024), exponent - 25);
    floats[k] = k >> 15 ? -size : size;
  }
  return floats;
}();

inline float half_to_float(uint16_t bits) {
  return HALVES[bits];
}

// Of a float that is a half-precision number.
inline uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size == 0.0f) return sign;
  if (!std::isfinite(value)) return sign | (std::isnan(value) ? 0x7e00 : 0x7c00);
  int exponent = 0;
  std::frexp(size, &exponent);
  if (exponent < -13) return sign | uint16_t(std::ldexp(size, 24));
  return sign | uint16_t((exponent + 14) << 10 | (int(std::ldexp(size, 11 - exponent)) - 1024));
}

}  // namespace emulation

#define threadIdx (dim3{unsigned(emulation::me().index), 0, 0})
#define blockIdx (emulation::me().block->index)
#define blockDim (emulation::machine().size)
#define gridDim (emulation::machine().grid)

inline void __syncthreads() {
  emulation::wait(emulation::me().block->all);
}
inline void __syncwarp(unsigned = ~0u) {
  emulation::wait(emulation::my_warp());
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  struct Shuffle {
    T value;
    int from;
    T found;
  } mine{value, lane % emulation::WARP, {}};
  emulation::together(mine, [](const auto& of) {
    for (int lane = 0; lane < emulation::WARP; lane++) of(lane).found = of(of(lane).from).value;
  });
  return mine.found;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by) {
  return __shfl_sync(mask, value, (emulation::me().index % emulation::WARP) ^ by);
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  struct Ballot {
    bool predicate;
    unsigned found;
  } mine{predicate, 0};
  emulation::together(mine, [](const auto& of) {
    unsigned found = 0;
    for (int lane = 0; lane < emulation::WARP; lane++) found |= unsigned(of(lane).predicate) << lane;
    for (int lane = 0; lane < emulation::WARP; lane++) of(lane).found = found;
  });
  return mine.found;
}

inline bool __any_sync(unsigned mask, bool predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

inline int atomicMax(int* at, int value) {
  const int before = *at;
  *at = std::max(before, value);
  return before;
}

inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline int max(int a, int b) {
  return a > b ? a : b;
}
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int64_t min(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t max(int64_t a, int64_t b) {
  return a > b ? a : b;
}
