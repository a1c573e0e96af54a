// scale_merge on a GPU: the forward pass.
#include <torch/csrc/stable/library.h>

#include "merge.h"

namespace a2s {
namespace {

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
