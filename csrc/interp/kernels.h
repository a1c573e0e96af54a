// Interp on a GPU: host code that launches the kernels.
#pragma once

#include "../support/check.h"
#include "gather.h"
#include "resize.h"

namespace a2s {

// The identity: a map resized by itself.
template <class T>
struct PlainResize {
  static constexpr bool kFactor = false, kWinner = false;
  struct Pixel {};
  __device__ acc_t<T> value(const Pixel&, const acc_t<T> (&v)[1], acc_t<T>&) const { return v[0]; }
};

inline void interp_into(const Tensor& x, const Tensor& y) {
  dispatch("interp", x, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kPack = kPackBytes / sizeof(T);
    const Map<T> out = map_of<T>(y);
    const Tensor from = addressable(x, is_interleaved(out));
    const ScaleSet<T, 1> scales({from}, out.h, out.w);
    if (packs<kPack>(scales.map[0]) && packs<kPack>(out)) {
      launch_resize<T, 1, kPack, true>(x, scales, PlainResize<T>{}, out, {});
    } else {
      dispatch_layout(out, [&](auto interleaved) {
        launch_resize<T, 1, 1, decltype(interleaved)::value>(x, scales, PlainResize<T>{}, out, {});
      });
    }
  });
}

inline Tensor interp(const Tensor& x, int64_t height, int64_t width) {
  Tensor y = empty_resized("interp", "x", x, height, width);
  interp_into(x, y);
  return y;
}

inline Tensor interp_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_x = empty_resized("interp_backward", "grad", grad, height, width);
  dispatch("interp_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kPack = kPackBytes / sizeof(T);
    const Map<T> to = map_of<T>(grad_x);
    const Tensor source = addressable(grad, is_interleaved(to));
    const Map<const T> from = map_of<const T>(source);
    const auto value_of = [&](int) { return PlainGrad<T>{from}; };
    if (packs<kPack>(from) && packs<kPack>(to)) {
      launch_gather<T, kPack, true>(grad, {grad_x}, from.h, from.w, 1, value_of);
    } else {
      dispatch_layout(to, [&](auto interleaved) {
        launch_gather<T, 1, decltype(interleaved)::value>(grad, {grad_x}, from.h, from.w, 1, value_of);
      });
    }
  });
  return grad_x;
}

inline Tensor interp_concat(const std::vector<Tensor>& features, int64_t height, int64_t width) {
  Tensor y = empty_concat(features, height, width);
  for_each_slice(features, y, interp_into);
  return y;
}

}  // namespace a2s
