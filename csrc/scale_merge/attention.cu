// scale_merge on a GPU: the forward pass.
#include <torch/csrc/stable/library.h>

#include "merge.h"

namespace a2s {
namespace {

// recalibration * sum over s of weight[s] * v[s]; the weights are computed once for each pixel, and stored.
template <class T, int S>
struct AttentionMerge {
  static constexpr bool kPixels = true, kFactor = true, kWinner = false;
  Map<const T> logits;
  Resize weight_resize;
  Map<const T> factor;
  Map<T> weights;

  __device__ PixelWeights<acc_t<T>, S> pixel(int n, int y, int x, bool stores) const {
    acc_t<T> w[S];
    weights_at(logits, weight_resize, n, y, x, w);
    PixelWeights<acc_t<T>, S> pixel{};
#pragma unroll
    for (int s = 0; s < S; ++s) {
      pixel.w[s] = w[s];
      if (stores) weights.at(n, s, y, x) = static_cast<T>(w[s]);
    }
    return pixel;
  }
  __device__ acc_t<T> finish(acc_t<T> sum) const { return sum; }
};

std::tuple<Tensor, Tensor> scale_merge(const std::vector<Tensor>& scores, const Tensor& logits, int64_t height,
                                       int64_t width, const std::optional<Tensor>& recalibration) {
  Tensor merged = empty_merged("scale_merge", scores, height, width);
  Tensor weights = empty_weights("scale_merge", scores, logits, height, width);
  check_recalibration("scale_merge", recalibration, merged);
  std::optional<Tensor> factor;
  if (recalibration) factor = addressable(*recalibration, is_channels_last(merged));
  launch_merge("scale_merge", scores, merged, nullptr, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    return AttentionMerge<T, decltype(count)::value>{map_of<const T>(logits),
                                                     Resize(logits.size(2), logits.size(3), height, width),
                                                     optional_map<T>(factor), map_of<T>(weights)};
  });
  return {merged, weights};
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) { m.impl("scale_merge", TORCH_BOX(&a2s::scale_merge)); }
