// The device primitives as CUDA and PTX. See device.h.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "queue.h"

#define PYSERVE_DEVICE __device__ __forceinline__
#define PYSERVE_KERNEL(threads, blocks_per_multiprocessor) \
  __global__ void __launch_bounds__(threads, blocks_per_multiprocessor)
// A parameter of a kernel that is read where it lies, however its address is used.
#define PYSERVE_PARAMETER const __grid_constant__

namespace pyserve::device {

// ------------------------------------------------------------ where a thread is

PYSERVE_DEVICE int32_t thread_index() { return static_cast<int32_t>(threadIdx.x); }
PYSERVE_DEVICE int64_t block_index() { return static_cast<int64_t>(blockIdx.x); }
PYSERVE_DEVICE int64_t grid_size() { return static_cast<int64_t>(gridDim.x); }

// ------------------------------------------------------------ memory

// `count` elements that are read and written as one access: aligned to their size.
template <class T, int32_t count>
struct alignas(sizeof(T) * count) Vector {
  T at[count];
};

PYSERVE_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Global memory. What load() reads must not be written by the same kernel.
template <class T>
PYSERVE_DEVICE T load(const T* from) {
  return *from;
}
template <class T>
PYSERVE_DEVICE void store(T* to, const T& value) {
  *to = value;
}

template <class T>
PYSERVE_DEVICE T load_shared(const T* from) {
  return *from;
}
template <class T>
PYSERVE_DEVICE void store_shared(T* to, const T& value) {
  *to = value;
}

// ------------------------------------------------------------ barriers and exchange

PYSERVE_DEVICE void block_barrier() { __syncthreads(); }
PYSERVE_DEVICE void warp_barrier() { __syncwarp(); }

// The value of the lane whose number differs in `mask`'s bits. All 32 lanes take part.
template <class T>
PYSERVE_DEVICE T shuffle_xor(T value, int32_t mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// ------------------------------------------------------------ element types

PYSERVE_DEVICE float float_from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
// Round to nearest, ties to even; NaN stays NaN.
PYSERVE_DEVICE uint16_t bf16_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// ------------------------------------------------------------ launch

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int32_t threads, int32_t shared_bytes, const Queue& queue,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  if (shared_bytes > 48 << 10)  // beyond this only on request
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  kernel<<<static_cast<uint32_t>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(queue.stream)>>>(
      arguments...);
  check(cudaGetLastError(), "launch of a kernel");
}

}  // namespace pyserve::device
