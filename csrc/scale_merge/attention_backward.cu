// scale_merge on a GPU: the backward pass, in two launches: what a pixel passes back by itself, to the logits, the
// recalibration and maps that are not resized; and gradients of resized maps, which gather what outputs pass back. A
// third one follows where the logits have a grid of their own.
#include <torch/csrc/stable/library.h>

#include "score_grads.h"
#include "weight_grad.h"

namespace a2s {
namespace {

// Cuts the maps into tiles and their channels into shares, those with which the busiest multiprocessor takes the fewest
// cycles to issue its instructions and to move its sectors. Returns the number of shares.
template <class T, int S>
int64_t plan_weight_grad(WeightGradArguments<T, S>& a) {
  constexpr int K = kWeightGradChannels;
  const Map<const T>& grad = a.grad;
  double least = INFINITY;
  for (int64_t shares = 1; shares <= std::min<int64_t>(ceil_div(grad.c, K), 32); ++shares) {
    const int64_t width = balanced(grad.w, std::min<int64_t>(kWeightGradPixels, kBlockThreads / shares));
    const Places places(width, shares, a.interleaved);
    for (int64_t rows = 1; rows <= kWeightGradRows; ++rows) {
      const Tiling tiling(grad.n, grad.h, grad.w, 1, rows, width, 1);
      const int64_t of_grad = a.recalibration.data ? 2 : 1;
      double instructions = 15 + 95 * rows, loaded = of_grad * rows, stored = (of_grad - 1) * rows, stretches = loaded;
      for (int s = 0; s < S; ++s) {
        const Axis &y = a.resize[s].y, &x = a.resize[s].x;
        const double read = a.resize[s].copies ? rows : 2 + (rows - 1) * y.ratio;  // rows of the map
        if (a.grad_maps[s]) stored += rows;
        if (!a.resize[s].copies) instructions += 21 * read;
        loaded += read * x.ratio;
        stretches += read;
      }
      const double issue = places.threads() / 128. * (400 + ceil_div(grad.c, K * shares) * instructions);
      // Sectors that adjacent values fill, and one more for each stretch of them. Channels of a pixel are adjacent, but
      // stored share by share: in parts of a sector, which take twice as long.
      const double more = a.interleaved ? stored * 64 / shares : (stretches + stored) * 32 / width;
      const double sectors = grad.c * width * ((loaded + stored) * sizeof(T) + more) / 24;
      const double block = std::max(issue, sectors) + std::min(issue, sectors) / 4;
      const double cost = ceil_div(tiling.blocks(), kMultiprocessors) * block;
      if (cost >= least) continue;
      least = cost;
      a.tiling = tiling;
      a.places = places;
      a.by_width = Divisor(tiling.width);
    }
  }
  return a.places.slots;
}

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
  // Maps that are not resized get their gradients in the first launch, if in the layout of `grad`; the others gather.
  const auto gathers = [&](size_t s) {
    return scores[s].size(2) != height || scores[s].size(3) != width ||
           is_channels_last(scores[s]) != is_channels_last(grad);
  };
  dispatch_merge("scale_merge_backward", scores, [&](auto type, auto count) {
    using T = typename decltype(type)::type;
    constexpr int S = decltype(count)::value;
    const std::vector<Tensor> from = addressable_all(scores, is_channels_last(grad));
    const ScaleSet<T, S> scales(from, height, width);
    WeightGradArguments<T, S> a{};
    for (int s = 0; s < S; ++s) {
      a.maps[s] = scales.map[s];
      a.resize[s] = scales.resize[s];
      if (gathers(s)) continue;
      a.copied = map_of<T>(grad_scores[s]);
      a.grad_maps[s] = a.copied.data;
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
    a.interleaved = is_channels_last(grad);
    const int64_t shares = plan_weight_grad(a);
    int64_t limit = std::min({channel_limit(a.grad), channel_limit(a.recalibration),
                              channel_limit(a.grad_recalibration), channel_limit(a.copied)});
    for (int s = 0; s < S; ++s) limit = std::min(limit, channel_limit(a.maps[s]));
    const int64_t group = limit > shares ? kWeightGradChannels * shares : shares;
    a.group = static_cast<int>(group);
    const auto bytes = [](int64_t values) { return values * static_cast<int64_t>(sizeof(T)); };
    const auto step = [&](const auto& map, uint32_t& second, int64_t& next) {
      second = static_cast<uint32_t>(bytes(shares * map.stride_c));
      next = bytes(group * map.stride_c);
    };
    for (int s = 0; s < S; ++s) step(a.maps[s], a.second_map[s], a.next_map[s]);
    step(a.grad, a.second_grad, a.next_grad);
    step(a.recalibration, a.second_recalibration, a.next_recalibration);
    step(a.grad_recalibration, a.second_grad_recalibration, a.next_grad_recalibration);
    step(a.copied, a.second_copied, a.next_copied);
    a.grad_row = bytes_between_rows(a.grad);
    a.copied_row = bytes_between_rows(a.copied);
    a.recalibration_row = bytes_between_rows(a.recalibration);
    a.grad_recalibration_row = bytes_between_rows(a.grad_recalibration);
    launch(grad, a.tiling.blocks(), a.places.threads(), 0, weight_grad_kernel<T, S>, a);
    if (resized) launch_logit_grad<T>(grad, logits, *weight_grad, grad_logits);
  });
  gather_scores("scale_merge_backward", grad, grad_scores, 1, gathers, [&](auto type) {
    using T = typename decltype(type)::type;
    return WeightedGrad<T>{map_of<const T>(grad), optional_map<T>(recalibration), map_of<const T>(weights)};
  });
  return {grad_scores, grad_logits, grad_recalibration};
}

}  // namespace
}  // namespace a2s

STABLE_TORCH_LIBRARY_IMPL(a2s, CUDA, m) { m.impl("scale_merge_backward", TORCH_BOX(&a2s::scale_merge_backward)); }
