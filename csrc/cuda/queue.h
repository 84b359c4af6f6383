// Where a CUDA kernel is launched, and where it gets memory from. Free of torch and of CUDA's headers.
#pragma once
#include <cstdint>

namespace pyserve {

// Kernels are only ever enqueued: a launch neither allocates device memory by itself nor waits for the device, so it
// can be captured in a CUDA graph.
struct Queue {
  void* stream;             // a cudaStream_t
  int32_t capability;       // compute capability × 10
  int32_t multiprocessors;  // of the device
  int32_t tile;             // a TileSize that tests and the tuner ask for, or -1
  // Scratch memory on the device, 256-byte aligned, valid for all work enqueued on the stream until the operator
  // returns, and for what runs on the stream later; `owner` is the launcher's.
  void* (*allocate)(void* owner, int64_t size_bytes);
  void* owner;

  template <class T>
  T* scratch(int64_t count) const {
    return static_cast<T*>(allocate(owner, count * static_cast<int64_t>(sizeof(T))));
  }
};

}  // namespace pyserve
