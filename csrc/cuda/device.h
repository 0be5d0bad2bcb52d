// What the kernels take from CUDA: launches, barriers, shared memory, number formats. With DML_EMULATED they
// are compiled for the CPU, by tests: tests/ops/emulation stands in for CUDA.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#ifdef DML_EMULATED
#include "matrices.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#ifdef DML_EMULATED
#define DML_ARGUMENT const
#else
#define DML_ARGUMENT const __grid_constant__  // may be referred to without a copy
#endif

namespace dml {

constexpr int WARP = 32, WARPS = 8, THREADS = WARPS * WARP;  // of a block
constexpr float LN2 = 0.6931471805599453f, LOG2E = 1.4426950408889634f;
constexpr float NOTHING =
    -1e30f;  // the logarithm of an empty sum: differences are defined, unlike those of -inf
constexpr unsigned ALL_LANES = ~0u;

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

__device__ __forceinline__ float bits_to_float(uint32_t bits) {
#ifdef DML_EMULATED
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#else
  return __uint_as_float(bits);
#endif
}

__device__ __forceinline__ uint32_t float_to_bits(float value) {
#ifdef DML_EMULATED
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#else
  return __float_as_uint(value);
#endif
}

// What other multiprocessors write meanwhile: their own first-level caches do not see it.
__device__ __forceinline__ float latest(const float* at) {
#ifdef DML_EMULATED
  return *at;
#else
  return __ldcg(at);
#endif
}

__device__ __forceinline__ float to_float(float value) {
  return value;
}

__device__ __forceinline__ float to_float(bfloat16 value) {
  return bits_to_float(uint32_t(value.bits) << 16);
}

__device__ __forceinline__ float to_float(float16 value) {
#ifdef DML_EMULATED
  return emulation::half_to_float(value.bits);
#else
  return __half2float(__ushort_as_half(value.bits));
#endif
}

__device__ __forceinline__ float16 to_float16(float value) {
#ifdef DML_EMULATED
  return float16{emulation::float_to_half(value)};
#else
  return float16{__half_as_ushort(__float2half_rn(value))};
#endif
}

// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ bfloat16 to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return bfloat16{uint16_t(bits >> 16 | 0x40)};
  return bfloat16{uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Two floats as bfloat16, rounded so, the first one in the lower half.
__device__ __forceinline__ uint32_t to_bfloat16s(float low, float high) {
#ifdef DML_EMULATED
  return to_bfloat16(low).bits | uint32_t(to_bfloat16(high).bits) << 16;
#else
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}

// The nearest value with ten bits of mantissa, which a tf32 product takes as it is.
__device__ __forceinline__ float to_tf32(float value) {
  const uint32_t bits = float_to_bits(value);
  return value != value ? value : bits_to_float((bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu);
}

#ifdef DML_EMULATED
inline float exp2(float x) {
  return std::exp2(x);
}
inline float log2(float x) {
  return std::log2(x);
}
inline float reciprocal(float x) {
  return 1.0f / x;
}
inline float square_root(float x) {
  return std::sqrt(x);
}
inline float reciprocal_sqrt(float x) {
  return 1.0f / std::sqrt(x);
}
#else
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float log2(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  return __frcp_rn(x);
}
__device__ __forceinline__ float square_root(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_sqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

__device__ __forceinline__ int lowest_bit(uint32_t mask) {
#ifdef DML_EMULATED
  return __builtin_ctz(mask);
#else
  return __ffs(int(mask)) - 1;
#endif
}

// The dynamic shared memory of the block.
__device__ __forceinline__ char* shared_memory() {
#ifdef DML_EMULATED
  return emulation::me().block->shared.get();
#else
  extern __shared__ __align__(1024) char memory[];
  return memory;
#endif
}

// All blocks of a cluster meet here; what each wrote before is seen by all after.
__device__ __forceinline__ void cluster_barrier() {
#ifdef DML_EMULATED
  emulation::wait(emulation::my_cluster());
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

struct Launch {
  dim3 grid, block;
  size_t shared = 0;
  void* stream = nullptr;
  int cluster = 1;           // blocks of a cluster
  bool cooperative = false;  // the grid has a barrier
};

constexpr int DEFAULT_SHARED = 48 * 1024;  // bytes; a kernel has to ask for more

// The GPU at hand.
struct Gpu {
  int id, major;  // the first number of the compute capability
  int multiprocessors;
  size_t shared;  // bytes that a block can ask for
};

#ifdef DML_EMULATED
using Status = int;
constexpr Status INVALID = 1;

inline Status find_gpu(Gpu& gpu) {
  const emulation::Gpu emulated = emulation::gpu();
  gpu = {0, emulated.capability, emulated.multiprocessors, emulated.shared};
  return 0;
}

template <class... Parameters, class... Arguments>
Status launch(void (*kernel)(Parameters...), const Launch& how, Arguments... arguments) {
  emulation::launch(how.grid, how.block, how.shared, how.cluster, how.cooperative,
                    [=] { kernel(arguments...); });
  return 0;
}

template <class... Parameters>
bool cluster_fits(void (*)(Parameters...), const Launch&) {
  return true;
}

template <class... Parameters>
Status find_code(void (*)(Parameters...)) {
  return 0;
}

template <class... Parameters>
bool has_code_since(void (*)(Parameters...), int) {
  return true;
}
#else
using Status = cudaError_t;
constexpr Status INVALID = cudaErrorInvalidValue;

inline Status find_gpu(Gpu& gpu) {
  int shared = 0;
  Status status = cudaGetDevice(&gpu.id);
  const auto ask = [&](int& value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, gpu.id);
  };
  ask(gpu.major, cudaDevAttrComputeCapabilityMajor);
  ask(gpu.multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  gpu.shared = size_t(shared);
  return status;
}

// What cudaLaunchKernelEx takes.
struct Configuration {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2];

  explicit Configuration(const Launch& how) {
    config.gridDim = how.grid;
    config.blockDim = how.block;
    config.dynamicSmemBytes = how.shared;
    config.stream = static_cast<cudaStream_t>(how.stream);
    config.attrs = attributes;
    if (how.cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (how.cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim.x = unsigned(how.cluster);
      attributes[config.numAttrs].val.clusterDim.y = attributes[config.numAttrs].val.clusterDim.z = 1;
      config.numAttrs++;
    }
  }
  Configuration(const Configuration&) = delete;
};

// Lets a kernel have more than any kernel may. What it was allowed once it keeps, for launches by other
// threads.
template <class... Parameters>
Status allow(void (*kernel)(Parameters...), const Launch& how) {
  static std::mutex mutex;
  static std::map<std::pair<void (*)(Parameters...), int>, size_t> allowed;  // by kernel and GPU
  int gpu = 0;
  Status status = cudaGetDevice(&gpu);
  if (status != cudaSuccess) return status;
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed.emplace(std::make_pair(kernel, gpu), DEFAULT_SHARED).first->second;
  if (how.shared > most) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(how.shared));
    if (status != cudaSuccess) return status;
    most = how.shared;
  }
  if (how.cluster <= 8) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <class... Parameters, class... Arguments>
Status launch(void (*kernel)(Parameters...), const Launch& how, Arguments... arguments) {
  const Status status = allow(kernel, how);
  if (status != cudaSuccess) return status;
  const Configuration configuration(how);
  return cudaLaunchKernelEx(&configuration.config, kernel, static_cast<Parameters>(arguments)...);
}

// Whether the GPU can run a cluster of a launch.
template <class... Parameters>
bool cluster_fits(void (*kernel)(Parameters...), const Launch& how) {
  const Configuration configuration(how);
  int clusters = 0;
  Status status = allow(kernel, how);
  if (status == cudaSuccess)
    status = cudaOccupancyMaxActiveClusters(&clusters, kernel, &configuration.config);
  if (status != cudaSuccess) cudaGetLastError();  // which would remain as that of a later call
  return clusters > 0;
}

// Whether there is a driver that knows this runtime, and code of a kernel for the GPU at hand.
template <class... Parameters>
Status find_code(void (*kernel)(Parameters...)) {
  cudaFuncAttributes found;
  const Status status = cudaFuncGetAttributes(&found, kernel);
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

// Whether the code of a kernel for the GPU at hand was written for a compute capability or a later one: a
// GPU runs code for earlier ones, too.
template <class... Parameters>
bool has_code_since(void (*kernel)(Parameters...), int major) {
  cudaFuncAttributes found;
  const Status status = cudaFuncGetAttributes(&found, kernel);
  if (status != cudaSuccess) cudaGetLastError();
  return status == cudaSuccess && found.ptxVersion >= 10 * major;
}
#endif

}  // namespace dml
