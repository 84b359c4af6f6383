// Between torch tensors and the torch-free problem structs: what the launchers of every device share.
// Only LibTorch's stable ABI is used, so one binary runs with every torch from 2.10 on.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "workspace.h"

namespace pyserve {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return std::string(torch::headeronly::toString(type));
  }
}

inline std::string device_name(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "device:") + std::to_string(t.get_device_index());
}

inline TensorInfo tensor_info(const Tensor& t) {
  const auto sizes = t.sizes();
  return {{sizes.begin(), sizes.end()}, dtype_name(t.scalar_type()), device_name(t)};
}

inline std::optional<TensorInfo> tensor_info(const OptionalTensor& t) {
  return t ? std::optional<TensorInfo>(tensor_info(*t)) : std::nullopt;
}

// Whether a 4-D tensor's strides order it N, H, W, C: PyTorch's own rule for the output's memory format, so that views
// and slices count too, and NCHW wins where both readings fit. `pyserve.kernels.ops` has the same for the fakes.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int64_t d : {1, 3, 2, 0}) {
    const int64_t size = t.size(d), stride = t.stride(d);
    if (size == 0 || stride < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = size > 1 ? stride * size : stride;
  }
  return true;
}

inline MemoryFormat output_format(const Tensor& x) {
  return is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor channels_last(const Tensor& t) { return torch::stable::contiguous(t, MemoryFormat::ChannelsLast); }
inline OptionalTensor channels_last(const OptionalTensor& t) {
  return t ? OptionalTensor(channels_last(*t)) : std::nullopt;
}

constexpr int64_t kLargeBytes = 4 << 20;  // malloc maps what is larger anew each time, or nearly so

inline Tensor empty_like_in(const Tensor& x, const std::vector<int64_t>& sizes, MemoryFormat format) {
  Tensor t = torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt, format);
  const int64_t size_bytes = t.numel() * static_cast<int64_t>(t.element_size());
  if (size_bytes >= kLargeBytes && t.is_cpu()) want_huge_pages(t.mutable_data_ptr(), size_bytes);
  return t;
}

// What stands for a gradient that was not asked for: an empty tensor of sizes [0].
inline Tensor absent_like(const Tensor& x) { return empty_like_in(x, {0}, MemoryFormat::Contiguous); }

inline const void* data_or_null(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

inline OptionalTensor contiguous_bias(const OptionalTensor& bias) {
  return bias ? OptionalTensor(torch::stable::contiguous(*bias)) : std::nullopt;
}

// A dense tensor as [outer][channels][inner], in the memory format that x has.
inline BiasReluProblem bias_relu_problem(const Tensor& x, MemoryFormat format, double lo, double hi) {
  const auto sizes = x.sizes();
  BiasReluProblem p{};
  p.channels = sizes[1];
  p.inner = 1;
  for (size_t d = 2; d < sizes.size(); ++d) p.inner *= sizes[d];
  p.outer = sizes[0];
  if (format == MemoryFormat::ChannelsLast) p.outer *= p.inner, p.inner = 1;
  p.dtype = kernel_dtype(dtype_name(x.scalar_type())).value_or(DType::f32);
  p.clamp = {lo, hi};
  return p;
}

}  // namespace pyserve
