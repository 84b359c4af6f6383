// The device primitives that every CUDA kernel is written in: one thin layer. Under nvcc they are CUDA and inline PTX
// (device_cuda.h). Under any other compiler they are an emulator (tests/kernels/emulator), which runs the very same
// kernel sources on a CPU, one thread block at a time, so that their logic is tested where there is no GPU.
//
// Kernels touch memory through these functions only: the emulator checks each access for bounds, alignment and races.
#pragma once
#if defined(__CUDACC__)
#include "device_cuda.h"
#else
#include "emulator.h"
#endif
