// Direct and 1×1 convolution of bfloat16 by dot products of pairs (AVX512-BF16's vdpbf16ps): the register tiles of
// conv2d_direct.h and conv2d_pointwise.h, in which a word is now a pair of neighbouring channels instead of a float.
// Pixels are read as they are in memory, without a copy as floats; weights are packed to
// [channels/(v·width)][tap][input channel/2][v·width] words. float32 sums. Needs Vec with kPerWord = 2; local to each
// including file.
#pragma once
#include "conv2d_pointwise.h"

namespace pyserve {
namespace {

// A forward convolution over words.
inline Product pairs_product(const Conv2dProblem& p) {
  const int64_t depth = p.group_c() / Vec::kPerWord, filter = p.R * p.S * depth;
  Product m{};
  m.grid = {p.N, p.P, p.Q, p.stride_h, p.stride_w, p.H, p.W, p.C / Vec::kPerWord, 0, 0, 1, 1, p.P, p.Q};
  m.rows = forward_axis(p.R, p.dilation_h, p.pad_h);
  m.columns_axis = forward_axis(p.S, p.dilation_w, p.pad_w);
  m.groups = p.groups, m.columns = p.group_k(), m.depth = depth;
  m.by_column = filter, m.by_depth = 1;
  m.by_group = p.group_k() * filter, m.by_tap_h = p.S * depth, m.by_tap_w = depth;
  return m;
}

// As words; only ever loaded, stored and multiplied by Vec::dot.
inline const float* words(const void* pairs) { return static_cast<const float*>(pairs); }

inline const float* packed_pairs(const Conv2dProblem& p, const Product& m, const Conv2dArgs& args, const Pool& pool) {
  return args.packed ? args.packed : pack(m, words(krsc_weight<Bf16>(p, args.weight, pool)), pool);
}

inline Epilogue<Bf16> pairs_epilogue(const Conv2dProblem& p, const Product& m, const Conv2dArgs& args,
                                     const Pool& pool) {
  return {pack_bias(m, static_cast<const Bf16*>(args.bias), pool), static_cast<const Bf16*>(args.residual),
          static_cast<Bf16*>(args.y), static_cast<float>(p.clamp.lo), static_cast<float>(p.clamp.hi)};
}

inline int32_t pairs_layout(const Conv2dProblem&) { return 0; }
inline int64_t pairs_packed_size(const Conv2dProblem& p) { return pairs_product(p).packed_size(); }
inline void pairs_pack(const Conv2dProblem& p, const void* weight, float* packed, const Pool& pool) {
  pack(pairs_product(p), words(krsc_weight<Bf16>(p, weight, pool)), packed, pool);
}

}  // namespace
}  // namespace pyserve
