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

// ------------------------------------------------------------ asynchronous copies

template <int32_t bytes>
void copy_async(void* to, const void* from, bool exists) {
  machine.copy_async(to, from, bytes, exists ? bytes : 0);
}
inline void copy_commit() { machine.copy_commit(); }
template <int32_t pending>
void copy_wait() {
  machine.copy_wait(pending);
}

// ------------------------------------------------------------ matrices across a warp

namespace detail {

// What a lane brings to ldmatrix, and gets from it.
struct Matrices {
  const unsigned char* row;
  uint32_t* parts;
};

template <bool transposed>
void load_matrices(uint32_t (&parts)[4], const void* row) {
  machine.shared_access(row, 16, 16, false);
  Matrices mine{static_cast<const unsigned char*>(row), parts};
  machine.collective(transposed ? "ldmatrix.trans" : "ldmatrix", &mine, [](emulator::Machine::Operands& lanes) {
    for (int32_t lane = 0; lane < emulator::kWarp; ++lane)
      for (int32_t matrix = 0; matrix < 4; ++matrix)
        for (int32_t half = 0; half < 2; ++half) {
          const int32_t along = lane % 4 * 2 + half, across = lane / 4;
          const int32_t from = matrix * 8 + (transposed ? along : across), at = transposed ? across : along;
          const unsigned char* element = static_cast<Matrices*>(lanes[from])->row + 2 * at;
          auto* to = reinterpret_cast<unsigned char*>(static_cast<Matrices*>(lanes[lane])->parts + matrix) + 2 * half;
          std::memcpy(to, element, 2);
        }
  });
}

// What a lane brings to mma: its fragments.
struct Fragments {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// depth: 16 elements of 16 bits or 8 of 32. element(word, i) widens element i of a fragment's word.
template <int32_t depth, float (*element)(uint32_t, int32_t)>
void mma(const char* name, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fragments mine{d, a, {b0, b1}};
  machine.collective(name, &mine, [](emulator::Machine::Operands& lanes) {
    constexpr int32_t packed = depth / 8;  // elements a word
    float left[16][depth], right[depth][8];
    for (int32_t lane = 0; lane < emulator::kWarp; ++lane) {
      const Fragments& f = *static_cast<Fragments*>(lanes[lane]);
      const int32_t group = lane / 4, inner = lane % 4 * packed;
      for (int32_t i = 0; i < packed; ++i) {
        for (int32_t word = 0; word < 4; ++word)
          left[group + word % 2 * 8][inner + word / 2 * depth / 2 + i] = element(f.a[word], i);
        for (int32_t word = 0; word < 2; ++word) right[inner + word * depth / 2 + i][group] = element(f.b[word], i);
      }
    }
    for (int32_t lane = 0; lane < emulator::kWarp; ++lane)
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = static_cast<Fragments*>(lanes[lane])->d[i];
        for (int32_t k = 0; k < depth; ++k) sum += left[row][k] * right[k][column];
        static_cast<Fragments*>(lanes[lane])->d[i] = sum;
      }
  });
}

}  // namespace detail

inline void load_matrices(uint32_t (&parts)[4], const void* row) { detail::load_matrices<false>(parts, row); }
inline void load_matrices_transposed(uint32_t (&parts)[4], const void* row) { detail::load_matrices<true>(parts, row); }

// ------------------------------------------------------------ arithmetic and element types

inline double inverse_square_root(double value) { return 1 / std::sqrt(value); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

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

inline float float_from_f16(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}
inline uint16_t f16_from_float(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}
inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t tf32_from_float_bits(uint32_t bits) {
  if (!std::isfinite(float_from_bits(bits))) return bits;
  return (bits + 0x1000) & ~uint32_t{0x1fff};
}

namespace detail {

inline float bf16_element(uint32_t word, int32_t i) { return float_from_bf16(static_cast<uint16_t>(word >> 16 * i)); }
inline float f16_element(uint32_t word, int32_t i) { return float_from_f16(static_cast<uint16_t>(word >> 16 * i)); }
// The hardware ignores the lower bits: what was not rounded is cut off.
inline float tf32_element(uint32_t word, int32_t) { return float_from_bits(word & ~uint32_t{0x1fff}); }

}  // namespace detail

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  detail::mma<16, detail::bf16_element>("mma.bf16", d, a, b0, b1);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  detail::mma<16, detail::f16_element>("mma.f16", d, a, b0, b1);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  detail::mma<8, detail::tf32_element>("mma.tf32", d, a, b0, b1);
}

// ------------------------------------------------------------ launch

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int32_t threads, int32_t shared_bytes, const Queue&,
            const Arguments&... arguments) {
  machine.run(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace pyserve::device
