// Copies of tensors whose channels do not come in multiples of what an asynchronous copy takes, with zeros added.
#pragma once
#include <algorithm>

#include "divisor.h"
#include "vector_access.h"

namespace pyserve {

constexpr int32_t kPadThreads = 256, kPadRun = 4;  // padded channels are a multiple of the latter

// to [rows_to][channels_to] = from [rows][channels], zeros elsewhere.
template <class T>
PYSERVE_KERNEL(kPadThreads, 4)
pad_channels_kernel(const T* from, int64_t rows, int64_t channels, T* to, int64_t rows_to,
                    PYSERVE_PARAMETER Divisor runs) {
  const int64_t step = device::grid_size() * kPadThreads, all = rows_to * runs.value;
  for (int64_t i = device::block_index() * kPadThreads + device::thread_index(); i < all; i += step) {
    const int64_t row = quotient(i, runs), channel = (i - row * runs.value) * kPadRun;
    Accumulator<T> values[kPadRun] = {};
    if (row < rows) read(from, row * channels + channel, (row + 1) * channels, false, values);
    write(to, i * kPadRun, (i + 1) * kPadRun, true, values);
  }
}

// The tensor itself where it is fit for copies of whole multiples, else a padded copy in scratch memory.
template <class T>
const T* padded(const void* tensor, int64_t rows, int64_t channels, int64_t rows_to, int64_t channels_to,
                const Queue& queue) {
  const T* from = static_cast<const T*>(tensor);
  if (rows_to == rows && channels_to == channels && aligned(tensor)) return from;
  T* to = queue.scratch<T>(rows_to * channels_to);
  const Divisor runs(channels_to / kPadRun);
  const int64_t blocks = std::min<int64_t>((rows_to * runs.value + kPadThreads - 1) / kPadThreads, int64_t{1} << 16);
  device::launch(pad_channels_kernel<T>, blocks, kPadThreads, 0, queue, from, rows, channels, to, rows_to, runs);
  return to;
}

}  // namespace pyserve
