// scale_max on a GPU.
#include <torch/csrc/stable/library.h>

#include "merge.h"
#include "score_grads.h"

namespace a2s {
namespace {

template <class T, int S>
struct MaxMerge {
  static constexpr bool kPixels = false, kFactor = false, kWinner = true;
  __device__ acc_t<T> value(const acc_t<T> (&v)[S], acc_t<T>& winner) const { return largest(v, winner); }
};

std::tuple<Tensor, Tensor> scale_max(const std::vector<Tensor>& scores, int64_t height, int64_t width) {
  Tensor merged = empty_merged("scale_max", scores, height, width);
  Tensor winner = empty_winner(merged);
  launch_merge("scale_max", scores, merged, &winner, [&](auto type, auto count) {
    return MaxMerge<typename decltype(type)::type, decltype(count)::value>{};
  });
  return {merged, winner};
}

std::vector<Tensor> scale_max_backward(const Tensor& grad, const Tensor& winner, const std::vector<Tensor>& scores) {
  check_max_backward("scale_max_backward", grad, winner, scores);
  std::vector<Tensor> grad_scores = empty_same_all(scores);
  dispatch("scale_max_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const Tensor passed = with_channels_as_in(scores, grad), won = with_channels_as_in(scores, winner);
    gather_scores<T>(passed, grad_scores, 1, WonGrad<T>{map_of<const T>(passed), map_of<const uint8_t>(won)},
                     NoScores<T>{});
  });
  return grad_scores;
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("scale_max", TORCH_BOX(&a2s::scale_max));
  m.impl("scale_max_backward", TORCH_BOX(&a2s::scale_max_backward));
}
