// Neighbouring elements of global memory as floats, 16 bytes at a time where they are aligned.
#pragma once
#include "element.h"

namespace pyserve {

// Elements of one 16-byte access.
template <class T>
constexpr int32_t kWide = 16 / static_cast<int32_t>(sizeof(T));

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// values = elements [i, i + count) of `from`; zeros from `end` on. `wide`: i lies on a 16-byte boundary.
template <class T, int32_t count>
PYSERVE_DEVICE void read(const T* from, int64_t i, int64_t end, bool wide, Accumulator<T> (&values)[count]) {
  constexpr int32_t width = count < kWide<T> ? count : kWide<T>;
  if (wide && i + count <= end) {
#pragma unroll
    for (int32_t j = 0; j < count; j += width) {
      const auto all = device::load(reinterpret_cast<const device::Vector<T, width>*>(from + i + j));
#pragma unroll
      for (int32_t k = 0; k < width; ++k) values[j + k] = widen(all.at[k]);
    }
    return;
  }
#pragma unroll
  for (int32_t j = 0; j < count; ++j) values[j] = i + j < end ? widen(device::load(from + i + j)) : Accumulator<T>(0);
}

template <class T, int32_t count>
PYSERVE_DEVICE void write(T* to, int64_t i, int64_t end, bool wide, const Accumulator<T> (&values)[count]) {
  constexpr int32_t width = count < kWide<T> ? count : kWide<T>;
  if (wide && i + count <= end) {
#pragma unroll
    for (int32_t j = 0; j < count; j += width) {
      device::Vector<T, width> all;
#pragma unroll
      for (int32_t k = 0; k < width; ++k) all.at[k] = narrow<T>(values[j + k]);
      device::store(reinterpret_cast<device::Vector<T, width>*>(to + i + j), all);
    }
    return;
  }
#pragma unroll
  for (int32_t j = 0; j < count; ++j)
    if (i + j < end) device::store(to + i + j, narrow<T>(values[j]));
}

}  // namespace pyserve
