// Tensors of the stable ABI as plain structs, allocation of results, and dispatch over dtypes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "host_device.h"

namespace a2s {

using torch::stable::Tensor;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int kMaxScales = 4;

// The type of sums: double for double, float for all other dtypes.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<std::remove_const_t<T>, double>, double, float>;

// A strided (N, C, H, W) map.
template <class T>
struct Map {
  T* data;
  int64_t n, c, h, w;
  int64_t stride_n, stride_c, stride_h, stride_w;
  bool channels_last;  // the channels of a pixel are adjacent in memory

  A2S_HD T& at(int64_t in, int64_t ic, int64_t y, int64_t x) const {
    return data[in * stride_n + ic * stride_c + y * stride_h + x * stride_w];
  }
  A2S_HD int64_t numel() const { return n * c * h * w; }
};

// Channels [first, first + count) of a map.
template <class T>
Map<T> channels_of(Map<T> map, int64_t first, int64_t count) {
  map.data += first * map.stride_c;
  map.c = count;
  return map;
}

// The same rule as in a2s_repro/ops/_native.py.
inline bool is_channels_last(const Tensor& tensor) {
  return tensor.size(1) > 1 && tensor.stride(1) == 1 && tensor.stride(3) != 1;
}

template <class T>
Map<T> map_of(const Tensor& tensor) {
  return {static_cast<T*>(tensor.data_ptr()), tensor.size(0),   tensor.size(1),   tensor.size(2),   tensor.size(3),
          tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3), is_channels_last(tensor)};
}

// An uninitialised (N, C, H, W) tensor on the device of `like`, in its layout and, by default, of its dtype.
inline Tensor empty_map(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, ScalarType dtype) {
  const std::array<int64_t, 4> size{n, c, h, w};
  return torch::stable::empty({size.data(), size.size()}, dtype, std::nullopt, like.device(), std::nullopt,
                              is_channels_last(like) ? torch::headeronly::MemoryFormat::ChannelsLast
                                                     : torch::headeronly::MemoryFormat::Contiguous);
}

inline Tensor empty_map(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return empty_map(like, n, c, h, w, like.scalar_type());
}

inline Tensor empty_same(const Tensor& like) {
  return empty_map(like, like.size(0), like.size(1), like.size(2), like.size(3));
}

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) for the floating dtype of `tensor`.
template <class Body>
void dispatch(const char* op, const Tensor& tensor, Body&& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return body(Type<float>{});
    case ScalarType::Double: return body(Type<double>{});
    case ScalarType::Half: return body(Type<Half>{});
    case ScalarType::BFloat16: return body(Type<BFloat16>{});
    default:
      throw std::runtime_error(std::string("a2s::") + op + ": maps must be float32, float64, float16 or bfloat16.");
  }
}

// The same for the loops on the CPU. They have no float16, which there runs on the references (ops/_native.py).
template <class Body>
void dispatch_cpu(const char* op, const Tensor& tensor, Body&& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return body(Type<float>{});
    case ScalarType::Double: return body(Type<double>{});
    case ScalarType::BFloat16: return body(Type<BFloat16>{});
    default:
      throw std::runtime_error(std::string("a2s::") + op +
                               ": maps must be float32, float64 or bfloat16 on the CPU.");
  }
}

// Calls body(std::integral_constant<int, S>{}) for 1 <= scales <= kMaxScales.
template <class Body>
void dispatch_scales(int64_t scales, Body&& body) {
  switch (scales) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
  }
}

}  // namespace a2s
