// scale_merge on a GPU: the backward pass. One launch reads the merged gradient. It gathers the gradients of two
// resized maps, stores those of a map that is not resized and of the recalibration, and sums up those of the weights. A
// second launch makes the gradient of the logits. More maps take more launches.
#include <torch/csrc/stable/library.h>

#include "logit_grad.h"

namespace a2s {
namespace {

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> scale_merge_backward(
    const Tensor& grad_merged, const std::optional<Tensor>& grad_weights, const std::vector<Tensor>& scores,
    const Tensor& logits, const Tensor& weights, const std::optional<Tensor>& recalibration) {
  check_merge_backward("scale_merge_backward", grad_merged, grad_weights, scores, logits, weights);
  check_recalibration("scale_merge_backward", recalibration, grad_merged);
  const Tensor grad = with_channels_as_in(scores, grad_merged);
  std::vector<Tensor> grad_scores = empty_same_all(scores), grad_recalibration;
  Tensor grad_logits = empty_same(logits);
  if (recalibration) grad_recalibration.push_back(empty_same(*recalibration));
  dispatch("scale_merge_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto recalibrates) {
      using Value = AttentionGrad<T, decltype(recalibrates)::value>;
      const auto to_recalibration = recalibration ? map_of<T>(grad_recalibration[0]) : Map<T>{};
      const Value value{map_of<const T>(grad), optional_map<T>(recalibration), map_of<const T>(weights),
                        to_recalibration};
      AttentionScores<T, Value> of(scores, grad, value);
      gather_scores<T>(grad, grad_scores, 1, value, of);
      of.launch_logit_grad(logits, grad_weights, grad_logits);
    };
    recalibration ? run(std::true_type{}) : run(std::false_type{});
  });
  return {grad_scores, grad_logits, grad_recalibration};
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) { m.impl("scale_merge_backward", TORCH_BOX(&a2s::scale_merge_backward)); }
