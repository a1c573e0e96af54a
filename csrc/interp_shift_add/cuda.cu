// interp_shift_add and its adjoint on a GPU.
#include <torch/csrc/stable/library.h>

#include "gather_taps.h"
#include "shift_add.h"

namespace a2s {
namespace {

Tensor interp_shift_add(const Tensor& planes, const Tensor& base) {
  Tensor y = empty_shift_add(planes, base);
  dispatch("interp_shift_add", planes, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto from = map_of<const T>(planes), added_to = map_of<const T>(base);
    const auto out = map_of<T>(y);
    dispatch_layout(out, [&](auto layout) {
      constexpr bool kInterleaved = decltype(layout)::value;
      if constexpr (kInterleaved && kPack<T> > 1) {
        if (packs<kPack<T>>(added_to) && packs<kPack<T>>(out)) {
          return launch_shift_add<T, kPack<T>, true>(planes, from, added_to, out);
        }
      }
      launch_shift_add<T, 1, kInterleaved>(planes, from, added_to, out);
    });
  });
  return y;
}

Tensor interp_shift_add_backward(const Tensor& grad, int64_t height, int64_t width) {
  Tensor grad_planes = empty_shift_add_backward(grad, height, width);
  dispatch("interp_shift_add_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto from = map_of<const T>(grad);
    const auto planes = map_of<T>(grad_planes);
    if (!is_interleaved(planes) && from.stride_w == 1) return launch_gather_taps<T, 1, false>(grad, from, planes);
    if constexpr (sizeof(T) == 2) {
      if (packs<2>(from) && packs<2>(planes)) return launch_gather_taps<T, 2, true>(grad, from, planes);
    }
    launch_gather_taps<T, 1, true>(grad, from, planes);
  });
  return grad_planes;
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("interp_shift_add", TORCH_BOX(&a2s::interp_shift_add));
  m.impl("interp_shift_add_backward", TORCH_BOX(&a2s::interp_shift_add_backward));
}
