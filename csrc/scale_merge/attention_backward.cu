// scale_merge on a GPU: the backward pass, in two launches: gradients of the logits and the recalibration, which sum
// over channels, and gradients of the scores, which gather what outputs pass back. A third one follows where the logits
// have a grid of their own.
#include <torch/csrc/stable/library.h>

#include "score_grads.h"
#include "weight_grad.h"

namespace a2s {
namespace {

template <class T>
void launch_logit_grad(const Tensor& grad, const Tensor& logits, const Tensor& weight_grad, const Tensor& grad_logits) {
  const LogitGradArguments<T> a{map_of<const T>(logits), map_of<const acc_t<T>>(weight_grad),
                                Resize(logits.size(2), logits.size(3), grad.size(2), grad.size(3)),
                                map_of<T>(grad_logits),
                                Tiling(logits.size(0), logits.size(2), logits.size(3), 1, 1, kBlockThreads, 1)};
  launch(grad, a.tiling.blocks(), kBlockThreads, 0, logit_grad_kernel<T>, a);
}

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> scale_merge_backward(
    const Tensor& grad, const std::optional<Tensor>& grad_weights, const std::vector<Tensor>& scores,
    const Tensor& logits, const Tensor& weights, const std::optional<Tensor>& recalibration) {
  check_merge_backward("scale_merge_backward", grad, grad_weights, scores, logits, weights);
  check_recalibration("scale_merge_backward", recalibration, grad);
  const int64_t height = grad.size(2), width = grad.size(3);
  std::vector<Tensor> grad_scores = empty_same_all(scores), grad_recalibration;
  Tensor grad_logits = empty_same(logits);
  if (recalibration) grad_recalibration.push_back(empty_same(*recalibration));
  const bool resized = logits.size(2) != height || logits.size(3) != width;
  dispatch_merge("scale_merge_backward", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const std::vector<Tensor> from = addressable_all(scores, is_channels_last(grad));
    const ScaleSet<T, S> scales(from, height, width);
    WeightGradArguments<T, S> a{};
    for (int s = 0; s < S; ++s) {
      a.maps[s] = scales.map[s];
      a.resize[s] = scales.resize[s];
    }
    a.grad = map_of<const T>(grad);
    a.recalibration = optional_map<T>(recalibration);
    a.grad_weights = optional_map<T>(grad_weights);
    a.weights = map_of<const T>(weights);
    if (recalibration) a.grad_recalibration = map_of<T>(grad_recalibration[0]);
    std::optional<Tensor> weight_grad;
    if (resized) {
      weight_grad = empty_planes<acc_t<T>>(weights);
      a.weight_grad = map_of<acc_t<T>>(*weight_grad);
    } else {
      a.grad_logits = map_of<T>(grad_logits);
    }
    a.tiling = Tiling(grad.size(0), height, width, 1, kWeightGradRows, kWeightGradPixels, 1);
    a.interleaved = is_channels_last(grad);
    const int64_t shares = std::min<int64_t>(a.grad.c, a.interleaved ? 8 : kBlockThreads / a.tiling.width);
    a.places = Places(a.tiling.width, shares, a.interleaved);
    const auto bytes = [](int64_t values) { return values * static_cast<int64_t>(sizeof(T)); };
    for (int s = 0; s < S; ++s) a.next_map[s] = bytes(shares * a.maps[s].stride_c);
    a.next_grad = bytes(shares * a.grad.stride_c);
    a.next_recalibration = bytes(shares * a.recalibration.stride_c);
    a.next_grad_recalibration = bytes(shares * a.grad_recalibration.stride_c);
    a.grad_row = bytes_between_rows(a.grad);
    a.recalibration_row = bytes_between_rows(a.recalibration);
    a.grad_recalibration_row = bytes_between_rows(a.grad_recalibration);
    launch(grad, a.tiling.blocks(), a.places.threads(), 0, weight_grad_kernel<T, S>, a);
    if (resized) launch_logit_grad<T>(grad, logits, *weight_grad, grad_logits);
  });
  std::optional<Tensor> factor;
  if (recalibration) factor = addressable(*recalibration, is_channels_last(grad));
  Tensor all_weights = addressable(weights, false);
  gather_scores("scale_merge_backward", grad, grad_scores, [&](auto type, const Tensor& grad_map, int s) {
    using T = typename decltype(type)::type;
    return WeightedGrad<T>{map_of<const T>(grad_map), optional_map<T>(factor),
                           map_of<const T>(torch::stable::narrow(all_weights, 1, s, 1))};
  });
  return {grad_scores, grad_logits, grad_recalibration};
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) { m.impl("scale_merge_backward", TORCH_BOX(&a2s::scale_merge_backward)); }
