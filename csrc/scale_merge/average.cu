// scale_average on a GPU.
#include <torch/csrc/stable/library.h>

#include "merge.h"
#include "score_grads.h"

namespace a2s {
namespace {

template <class T>
struct AverageMerge {
  static constexpr bool kPixels = false, kFactor = false, kWinner = false;
  acc_t<T> factor;

  __device__ acc_t<T> finish(acc_t<T> sum) const { return factor * sum; }
};

Tensor scale_average(const std::vector<Tensor>& scores, int64_t height, int64_t width, double factor) {
  Tensor merged = empty_merged("scale_average", scores, height, width);
  launch_merge("scale_average", scores, merged, nullptr, [&](auto type, auto) {
    return AverageMerge<typename decltype(type)::type>{static_cast<float>(factor)};
  });
  return merged;
}

std::vector<Tensor> scale_average_backward(const Tensor& grad, const std::vector<Tensor>& scores, double factor) {
  check_average_backward("scale_average_backward", grad, scores);
  std::vector<Tensor> grad_scores = empty_grads(grad, scores);
  dispatch("scale_average_backward", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    const Tensor passed = with_channels_as_in(scores, grad);
    gather_scores<T>(passed, grad_scores, static_cast<float>(factor), AverageGrad<T>{map_of<const T>(passed)},
                     NoScores<T>{});
  });
  return grad_scores;
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) {
  m.impl("scale_average", TORCH_BOX(&a2s::scale_average));
  m.impl("scale_average_backward", TORCH_BOX(&a2s::scale_average_backward));
}
