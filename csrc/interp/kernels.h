// Interp on a GPU: host code that launches the kernels.
#pragma once

#include "../support/check.h"
#include "gather.h"
#include "resize.h"

namespace a2s {

// Resizes all of `x` into `y`, with a launch for every kMaxScales of them.
inline void interp_into(const std::vector<Tensor>& x, const std::vector<Tensor>& y) {
  dispatch("interp", x[0], [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kPack = kPackBytes / sizeof(T);
    for (size_t first = 0; first < x.size(); first += kMaxScales) {
      std::vector<Tensor> kept;
      std::vector<Map<const T>> maps;
      std::vector<Map<T>> out;
      bool in_packs = true;
      for (size_t i = first; i < std::min<size_t>(first + kMaxScales, x.size()); ++i) {
        out.push_back(map_of<T>(y[i]));
        kept.push_back(addressable(x[i], is_interleaved(out.back())));
        maps.push_back(map_of<const T>(kept.back()));
        in_packs = in_packs && packs<kPack>(maps.back()) && packs<kPack>(out.back());
      }
      if (in_packs) {
        launch_resize_parts<T, kPack, true>(x[0], maps, out);
      } else {
        dispatch_layout(out[0], [&](auto interleaved) {
          launch_resize_parts<T, 1, decltype(interleaved)::value>(x[0], maps, out);
        });
      }
    }
  });
}

inline Tensor interp(const Tensor& x, int64_t height, int64_t width) {
  Tensor y = empty_resized("interp", "x", x, height, width);
  interp_into({x}, {y});
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
  std::vector<Tensor> slices;
  for_each_slice(features, y, [&](const Tensor&, const Tensor& slice) { slices.push_back(slice); });
  interp_into(features, slices);
  return y;
}

}  // namespace a2s
