// scale_softmax on a GPU: a thread computes a pixel.
#include <torch/csrc/stable/library.h>

#include "../support/launch.h"
#include "../support/tile.h"
#include "scale_merge.h"

namespace a2s {
namespace {

template <class T>
struct SoftmaxArguments {
  Map<const T> logits;
  Map<T> weights;
  Tiling tiling;  // without channels
};

template <class T>
__global__ void __launch_bounds__(kBlockThreads) softmax_pixels(const __grid_constant__ SoftmaxArguments<T> a) {
  const Tile tile = a.tiling.tile(blockIdx.x);
  if (static_cast<int>(threadIdx.x) >= tile.width) return;
  softmax_pixel(a.logits, a.weights, tile.n, tile.y, tile.x + threadIdx.x);
}

template <class T>
struct SoftmaxBackwardArguments {
  Map<const T> grad, weights;
  Map<T> grad_logits;
  Tiling tiling;  // without channels
};

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    softmax_pixels_backward(const __grid_constant__ SoftmaxBackwardArguments<T> a) {
  const Tile tile = a.tiling.tile(blockIdx.x);
  if (static_cast<int>(threadIdx.x) >= tile.width) return;
  softmax_pixel_backward(a.grad, a.weights, a.grad_logits, tile.n, tile.y, tile.x + threadIdx.x);
}

Tiling pixel_tiling(const Tensor& map) {
  return Tiling(map.size(0), map.size(2), map.size(3), 1, 1, kBlockThreads, 1);
}

int pixel_threads(const Tiling& tiling) { return static_cast<int>(ceil_div(tiling.width, 32) * 32); }

Tensor scale_softmax(const Tensor& logits) {
  check_map("scale_softmax", "logits", logits);
  Tensor weights = empty_same(logits);
  dispatch("scale_softmax", logits, [&](auto type) {
    using T = typename decltype(type)::type;
    const SoftmaxArguments<T> a{map_of<const T>(logits), map_of<T>(weights), pixel_tiling(logits)};
    launch(logits, a.tiling.blocks(), pixel_threads(a.tiling), 0, softmax_pixels<T>, a);
  });
  return weights;
}

Tensor scale_softmax_backward(const Tensor& grad, const Tensor& weights) {
  check_softmax_backward("scale_softmax_backward", grad, weights);
  Tensor grad_logits = empty_same(weights);
  dispatch("scale_softmax_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const SoftmaxBackwardArguments<T> a{map_of<const T>(grad), map_of<const T>(weights), map_of<T>(grad_logits),
                                        pixel_tiling(grad)};
    launch(grad, a.tiling.blocks(), pixel_threads(a.tiling), 0, softmax_pixels_backward<T>, a);
  });
  return grad_logits;
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("scale_softmax", TORCH_BOX(&a2s::scale_softmax));
  m.impl("scale_softmax_backward", TORCH_BOX(&a2s::scale_softmax_backward));
}
