// A chain of layers run by one call: what prediction does instead of one operator call per layer. The layers are given
// as a program, a list of 64-bit words that `pyserve/kernels/plan.py` writes for one set of input sizes:
//
//     dtype, images, workspace bytes, number of values, number of steps
//     per value: place (see Place), number in that place or offset in the workspace, dimensions (4 or 2), N, H, W, C
//     per step:  kind (see StepKind), images at a time, number of words that follow, and those
//
// Steps that follow each other and take the same part of the images at a time run over one part after the other, so
// that large maps are still in the caches when the next layer reads them. A value that only they see has room for one
// part, N. Values are dense and channels-last; the workspace holds those that neither come in nor go out, where a plan
// over their life times has put them. Constants are the weights, [K][R][S][C/groups] those of
// convolutions. Free of torch.
#pragma once
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

#include "conv2d.h"
#include "parallel.h"

namespace pyserve {

enum class Place : int64_t { input, output, workspace };

enum class StepKind : int64_t {
  conv2d,          // x, y, residual or −1, weight, packed or −1, bias or −1, variant, R, S, strides, paddings,
                   // dilations, groups, pool's size (0: none), stride, padding, lo, hi
  max_pool2d,      // x, y, R, S, strides, paddings
  average_pool2d,  // x, y
  linear,          // x, y, weight, bias or −1, lo, hi
  bias_relu,       // x, y, residual or −1, lo, hi
  flatten          // x, y
};

struct ChainValue {
  Place place;
  int64_t at, dims, N, H, W, C;
  int64_t skipped = 0;  // bytes before the part that is meant
  int64_t image() const { return H * W * C; }
  int64_t numel() const { return N * image(); }
};

struct ChainConstant {
  const void* data;
  int64_t numel;
};

struct ChainStep {
  StepKind kind;
  int64_t images;  // at a time
  const int64_t *words, *end;
};

struct Chain {
  DType dtype;
  int64_t images, workspace_bytes;
  std::vector<ChainValue> values;
  std::vector<ChainStep> steps;

  // The program must outlive the chain. Throws std::invalid_argument.
  Chain(const int64_t* words, int64_t count);
  int64_t element_size() const { return dtype == DType::f32 ? 4 : 2; }
  // How many values have a place.
  int64_t count(Place place) const;

  // `between` is called after each step: its scratch memory is free again.
  void run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
           const std::vector<ChainConstant>& constants, void* workspace, const Pool& pool,
           const std::function<void()>& between) const;
};

}  // namespace pyserve
