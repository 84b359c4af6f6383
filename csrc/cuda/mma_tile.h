// Tiles of operands in shared memory for the tensor cores: where each 16-byte chunk lies, and how a warp takes its
// fragments from there. A tile spans 64 bytes along the sum. Chunks are swizzled so that neither the copies into a tile
// nor the eight rows of an ldmatrix meet in a bank.
#pragma once
#include "element.h"

namespace pyserve::mma {

constexpr int32_t kChunk = 16;                // bytes of one access
constexpr int32_t kDepthBytes = 64;           // of a tile along the sum
constexpr int32_t kSteps = kDepthBytes / 32;  // one mma takes 32 bytes along the sum: 16 or 8 elements

template <class T>
constexpr int32_t kDepth = kDepthBytes / static_cast<int32_t>(sizeof(T));

// d += a × b on the tensor cores, float32 as TF32.
template <class T>
PYSERVE_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    device::mma_bf16(d, a, b0, b1);
  } else if constexpr (std::is_same_v<T, Float16>) {
    device::mma_f16(d, a, b0, b1);
  } else {
    device::mma_tf32(d, a, b0, b1);
  }
}

// kOuter rows (or columns) of an operand × kDepthBytes along the sum.
template <class T, bool kInnerContiguous, int32_t kOuter>
struct Tile {
  static constexpr int32_t kBytes = kOuter * kDepthBytes;
  static constexpr int32_t kElements = kChunk / static_cast<int32_t>(sizeof(T));  // of a chunk
  // Chunks of a line: of an outer index along the sum, or of a position along the sum over the outer side.
  static constexpr int32_t kChunks = kInnerContiguous ? kDepthBytes / kChunk : kOuter / kElements;

  PYSERVE_DEVICE static int32_t address(int32_t line, int32_t chunk) {
    int32_t swizzled = chunk ^ (line % 8);
    if constexpr (kChunks == 4) {
      swizzled = chunk ^ (line / 2 % 4);
    } else if constexpr (sizeof(T) == 4) {
      swizzled = chunk ^ (line % 4 * 2);  // read word by word, four lines at a time
    }
    return (line * kChunks + swizzled) * kChunk;
  }

  // The fragment of 16 rows from `outer` on for the left matrix of an mma, or those of two times 8 columns for the
  // right one: four blocks of 8 × 16 bytes, ordered first across and then along the sum, or the other way round.
  template <bool kLeft>
  PYSERVE_DEVICE static void load(uint32_t (&words)[4], const unsigned char* tile, int32_t outer, int32_t step) {
    const int32_t lane = device::thread_index() % 32, block = lane / 8, row = lane % 8;
    const int32_t across = kLeft ? block % 2 : block / 2, along = kLeft ? block / 2 : block % 2;
    if constexpr (kInnerContiguous) {
      device::load_matrices(words, tile + address(outer + across * 8 + row, step * 2 + along));
    } else if constexpr (sizeof(T) == 2) {
      device::load_matrices_transposed(words, tile + address(step * 16 + along * 8 + row, outer / kElements + across));
    } else {  // ldmatrix does not transpose 32-bit elements: one by one
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t at = outer + lane / 4 + (kLeft ? i % 2 : i / 2) * 8;
        const int32_t line = step * 8 + lane % 4 + (kLeft ? i / 2 : i % 2) * 4;
        const unsigned char* chunk = tile + address(line, at / kElements);
        words[i] = device::load_shared(reinterpret_cast<const uint32_t*>(chunk) + at % kElements);
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) words[i] = device::tf32_from_float_bits(words[i]);
    }
  }
};

}  // namespace pyserve::mma
