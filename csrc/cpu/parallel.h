// The one place that starts threads. A single thread runs where it stands, without the OpenMP runtime.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace DML_ISA {

// What f() throws, or nothing.
template <class F>
std::exception_ptr thrown_by(F&& f) {
  try {
    f();
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

// f(worker), compiled once. Where it was inlined twice, for one thread and for several, the compiler might
// fuse other multiplications and additions in either, and the number of threads would change bits.
template <class F>
[[gnu::noinline]] void call(F& f, int worker) {
  f(worker);
}

// Calls f(worker) once on each of `threads` threads. What one of them throws is thrown once all have ended.
template <class F>
void on_each_thread(int threads, F&& f) {
  if (threads <= 1) return call(f, 0);
  std::exception_ptr thrown;
#pragma omp parallel num_threads(threads)
  if (const std::exception_ptr mine = thrown_by([&] { call(f, omp_get_thread_num()); })) {
#pragma omp critical
    thrown = mine;
  }
  if (thrown) std::rethrow_exception(thrown);
}

// Calls f(i) for i in [0, n), in equal shares.
template <class F>
void parallel_for(int threads, int64_t n, F&& f) {
  on_each_thread(int(std::min<int64_t>(threads, n)), [&](int) {
    const int64_t team = threads <= 1 || n <= 1 ? 1 : omp_get_num_threads(),
                  worker = team == 1 ? 0 : omp_get_thread_num();
    for (int64_t i = n * worker / team; i < n * (worker + 1) / team; i++) f(i);
  });
}

}  // namespace DML_ISA
