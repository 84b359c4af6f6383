// The device primitives of csrc/cuda/device_cuda.h, on the emulated machine.
#pragma once
#include <cmath>
#include <cstring>

#include "machine.h"
#include "queue.h"

#define PYSERVE_DEVICE inline
#define PYSERVE_KERNEL(threads, blocks_per_multiprocessor) inline void
#define PYSERVE_PARAMETER const

namespace pyserve::device {

using emulator::machine;

// ------------------------------------------------------------ where a thread is

inline int32_t thread_index() { return machine.thread(); }
inline int64_t block_index() { return machine.block(); }
inline int64_t grid_size() { return machine.blocks(); }

// ------------------------------------------------------------ memory

template <class T, int32_t count>
struct alignas(sizeof(T) * count) Vector {
  T at[count];
};

inline unsigned char* shared_memory() { return machine.shared(); }

template <class T>
T load(const T* from) {
  machine.global_read(from, sizeof(T), alignof(T));
  return *from;
}
template <class T>
void store(T* to, const T& value) {
  machine.global_write(to, sizeof(T), alignof(T));
  *to = value;
}
template <class T>
T load_shared(const T* from) {
  machine.shared_access(from, sizeof(T), alignof(T), false);
  return *from;
}
template <class T>
void store_shared(T* to, const T& value) {
  machine.shared_access(to, sizeof(T), alignof(T), true);
  *to = value;
}

// ------------------------------------------------------------ barriers and exchange

inline void block_barrier() { machine.block_barrier(); }
inline void warp_barrier() { machine.warp_barrier(); }

template <class T>
T shuffle_xor(T value, int32_t mask) {
  struct Operand {
    T value, got;
    int32_t mask;
  } operand{value, value, mask};
  machine.collective("shuffle_xor", &operand, [](emulator::Machine::Operands& lanes) {
    for (int32_t i = 0; i < emulator::kWarp; ++i) {
      Operand& lane = *static_cast<Operand*>(lanes[i]);
      lane.got = static_cast<Operand*>(lanes[i ^ lane.mask])->value;
    }
  });
  return operand.got;
}

// ------------------------------------------------------------ element types

inline float float_from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
inline uint16_t bf16_from_float(float value) {
  if (std::isnan(value)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// ------------------------------------------------------------ launch

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int32_t threads, int32_t shared_bytes, const Queue&,
            const Arguments&... arguments) {
  machine.run(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace pyserve::device
