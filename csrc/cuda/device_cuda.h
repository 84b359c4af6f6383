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

// ------------------------------------------------------------ asynchronous copies (sm_80)

PYSERVE_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts a copy from global to shared memory, both aligned to `bytes`; zeros, and no read, where `exists` is false.
template <int32_t bytes>
PYSERVE_DEVICE void copy_async(void* to, const void* from, bool exists) {
  static_assert(bytes == 8 || bytes == 16);
  const int32_t filled = exists ? bytes : 0;
  if constexpr (bytes == 16) {  // past the L1, which would only be filled with what nobody reads again
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(filled)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(filled)
                 : "memory");
  }
}
// The copies that this thread started since the last commit become a group.
PYSERVE_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups are still under way.
template <int32_t pending>
PYSERVE_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ------------------------------------------------------------ matrices across a warp (sm_80)

// Four 8×8 matrices of 16-bit elements (8×4 of 32 bits) from shared memory: lane l says where row l mod 8 of matrix
// l / 8 lies, 16 bytes. Of each matrix it gets elements 2(l mod 4) and the next of row l / 4.
PYSERVE_DEVICE void load_matrices(uint32_t (&parts)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"(shared_address(row))
               : "memory");
}
// Of each matrix a lane gets elements l / 4 of the rows 2(l mod 4) and the next.
PYSERVE_DEVICE void load_matrices_transposed(uint32_t (&parts)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
               : "r"(shared_address(row))
               : "memory");
}

// d [16][8] += a [16][16] × b [16][8] for 16-bit elements, a [16][8] × b [8][8] for TF32; sums in float32. The
// fragments are those of the PTX manual's mma.m16n8k16 and mma.m16n8k8.
#define PYSERVE_MMA(name, instruction)                                                        \
  PYSERVE_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm volatile("mma.sync.aligned." instruction                                              \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "                   \
                 "%2, %3};"                                                                   \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));             \
  }
PYSERVE_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
PYSERVE_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
PYSERVE_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef PYSERVE_MMA

// ------------------------------------------------------------ arithmetic and element types

PYSERVE_DEVICE double inverse_square_root(double value) { return rsqrt(value); }
// The upper half of the 64-bit product.
PYSERVE_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

PYSERVE_DEVICE float float_from_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
// Round to nearest, ties to even; NaN stays NaN.
PYSERVE_DEVICE uint16_t bf16_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

PYSERVE_DEVICE float float_from_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
PYSERVE_DEVICE uint16_t f16_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
// A float32's bits, rounded to TF32 (10 bits of fraction): to nearest, ties away from zero.
PYSERVE_DEVICE uint32_t tf32_from_float_bits(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
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
