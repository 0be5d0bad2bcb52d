// What sm_90a adds: copies of whole tiles by the copy engine, products by four warps at a time, groups of
// warps that take turns. A place in shared memory that copies or products use begins at a multiple of 1024
// bytes.
#pragma once

#include "tiles.h"

namespace dml {

#if defined(DML_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DML_HOPPER
#endif

constexpr int GROUP = 4;  // warps that multiply together

// A barrier in shared memory that counts arrivals and bytes. Every full count ends a phase, of parity 0
// first.
struct Phases {
#ifdef DML_EMULATED
  emulation::Phases phases;
#else
  uint64_t state;
#endif
};

// A matrix of bfloat16 in tiles, as an operand of a product: TILE columns, in chunks of a tile, from an
// offset on.
struct Operand {
  const char* tile;
  int offset;
  int leading, stride;  // bytes from one repetition of 64 components to the next, and of eight rows
};

#ifdef DML_HOPPER
#ifdef DML_EMULATED
inline void begin(Phases& phases, int arrivals) {
  phases.phases = {arrivals, arrivals, 0, 0};
}
inline void publish_phases() {}
inline void arrive(Phases& phases) {
  emulation::arrive(phases.phases, 1, 0);
}
inline void arrive_expecting(Phases& phases, int bytes) {
  phases.phases.bytes += bytes;
  emulation::arrive(phases.phases, 1, 0);
}
inline void await(Phases& phases, int parity) {
  emulation::await(phases.phases, parity);
}
inline void arrive_at(Phases& phases, int rank) {
  emulation::arrive(emulation::in_block(&phases, rank)->phases, 1, 0);
}
inline void copy(char* shared, const char* global, int bytes, Phases& phases) {
  emulation::copy(shared, global, bytes, phases.phases, *emulation::me().block);
}
inline void copy_to_all(char* shared, const char* global, int bytes, Phases& phases, int blocks) {
  for (int rank = 0; rank < blocks; rank++)
    emulation::copy(emulation::in_block(shared, rank), global, bytes,
                    emulation::in_block(&phases, rank)->phases, emulation::of_cluster(rank));
}
inline void meet(int barrier, int threads) {
  emulation::wait(emulation::named(barrier, threads));
}
inline void pass(int barrier, int threads) {
  emulation::pass(emulation::named(barrier, threads));
}
template <int COUNT>
void take_registers() {}
template <int COUNT>
void leave_registers() {}
#else
__device__ __forceinline__ void begin(Phases& phases, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&phases)), "r"(arrivals));
}

// Makes barriers that were begun known to the copy engine.
__device__ __forceinline__ void publish_phases() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(Phases& phases) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&phases)) : "memory");
}

// At that of another block of the cluster. It shows that block nothing that was written: to be seen by all of
// the cluster, stores of this thread to global memory would be waited for.
__device__ __forceinline__ void arrive_at(Phases& phases, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(&phases)),
      "r"(rank)
      : "memory");
}

__device__ __forceinline__ void arrive_expecting(Phases& phases, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&phases)),
               "r"(bytes)
               : "memory");
}

// Waits for the end of a phase of a parity.
__device__ __forceinline__ void await(Phases& phases, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(&phases)),
      "r"(parity)
      : "memory");
}

// Copies a multiple of 16 bytes, which the phase at hand waits for.
__device__ __forceinline__ void copy(char* shared, const char* global, int bytes, Phases& phases) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(&phases))
      : "memory");
}

// The same to this place of all blocks of the cluster, in each of which its phase at hand waits.
__device__ __forceinline__ void copy_to_all(char* shared, const char* global, int bytes, Phases& phases,
                                            int blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(&phases)), "h"(uint16_t((1 << blocks) - 1))
      : "memory");
}

// Threads meet at a barrier of the block; those that pass are counted and go on.
__device__ __forceinline__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

template <int COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// As an instruction takes it: addresses in units of 16 bytes, rows of 128 bytes in the order of tiles.h.
// Steps of one tile differ in a number that is added.
__device__ __forceinline__ uint64_t descriptor_of(const Operand& operand) {
  const uint32_t tile = (shared_address(operand.tile) & 0x3ffff) >> 4 | uint32_t(operand.leading >> 4) << 16;
  return uint64_t(operand.stride >> 4 | 1 << 30) << 32 | (tile + uint32_t(operand.offset >> 4));
}
#endif

// Products go on in the background, from begin_products on and until await_products.
__device__ __forceinline__ void begin_products() {
#ifndef DML_EMULATED
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void end_products() {
#ifdef DML_EMULATED
  emulation::me().products.end_group();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void await_products() {
#ifdef DML_EMULATED
  emulation::me().products.await(0);
#else
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}

// Keeps the compiler from moving what it does with results to where they are not yet there.
template <int N>
__device__ __forceinline__ void hold(float (&sums)[N][4]) {
#ifndef DML_EMULATED
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) asm volatile("" : "+f"(sums[n][e])::"memory");
#endif
}

// Adds to sums (64 rows, 64 columns or components) the product of 16 components of the rows of four warps
// with the columns: rows and columns by components, or, ALONG, weights of 16 columns with components of
// these. FIRST: sums were anything before.
template <bool ALONG, bool FIRST = false>
__device__ __forceinline__ void multiply_add(float (&sums)[8][4], const uint32_t (&a)[4], const Operand& b) {
#ifdef DML_EMULATED
  emulation::me().products.push([&sums, rows = std::array<uint32_t, 4>{a[0], a[1], a[2], a[3]}, b] {
    if (FIRST) std::fill_n(&sums[0][0], 32, 0.0f);
    emulation::multiply_add_shared(sums, rows, b.tile + b.offset, b.leading, b.stride, ALONG);
  });
#else
#define DML_SUMS(n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, %37, 1, 1, %38;"
      : DML_SUMS(0), DML_SUMS(1), DML_SUMS(2), DML_SUMS(3), DML_SUMS(4), DML_SUMS(5), DML_SUMS(6), DML_SUMS(7)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor_of(b)), "n"(int(!FIRST)), "n"(int(ALONG)));
#undef DML_SUMS
#endif
}
#endif

}  // namespace dml
